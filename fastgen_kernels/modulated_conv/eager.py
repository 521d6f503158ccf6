"""The modulated convolution as PyTorch runs it fastest: what benchmarks compare the kernels with."""

from __future__ import annotations

from torch import Tensor

from ..adain.reference import per_plane
from ..upfirdn.eager import upfirdn
from .reference import convolved, demodulation, padding_behind, weight_energy


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool = True,
    eps: float = 1e-8,
    energy: Tensor | None = None,
    scaled: bool = False,
    up: int = 1,
    filter: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    act_gain: float = 1.0,
    post_scale: Tensor | None = None,
) -> Tensor:
    """Activations scaled rather than weights, every step in x's type, the epilogue in place."""
    v = convolved(x if scaled else x * per_plane(style, x.dtype), weight, up)
    scale = None
    if demodulate:
        known = weight_energy(weight) if energy is None else energy
        scale = demodulation(style.to(known.dtype), known, eps)
    after = (scale, noise, noise_weight, bias, slope, act_gain, post_scale)
    if filter is None:
        return upfirdn(v, None, 1, 1, (0, 0), 1.0, *after)
    return upfirdn(v, filter, 1, 1, padding_behind(weight.shape[2], len(filter)), float(up * up), *after)
