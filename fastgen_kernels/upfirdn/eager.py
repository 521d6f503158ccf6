"""Resampling as PyTorch runs it fastest: what benchmarks compare the kernel with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..adain.reference import per_plane


def upfirdn(
    x: Tensor,
    filter: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
    gain: float = 1.0,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    act_gain: float = 1.0,
    post_scale: Tensor | None = None,
) -> Tensor:
    """One depthwise convolution, transposed where it upsamples, in x's type; the epilogue in place."""
    before, after = padding
    if filter is None and up == down == 1 and before == after == 0 and gain == 1.0:
        v = x.clone() if scale is None else x * per_plane(scale, x.dtype)
    else:
        v = _filtered(x, filter, up, down, before, after, gain)
        v = v if scale is None else v.mul_(per_plane(scale, x.dtype))
    if noise is not None and noise_weight is not None:
        v = v.addcmul_(noise.to(v.dtype), per_plane(noise_weight, v.dtype))
    if bias is not None:
        v = v.add_(per_plane(bias, v.dtype))
    if slope != 1.0:
        v = F.leaky_relu_(v, slope)
    if act_gain != 1.0:
        v = v.mul_(act_gain)
    return v if post_scale is None else v.mul_(per_plane(post_scale, v.dtype))


def _filtered(
    x: Tensor, filter: Tensor | None, up: int, down: int, before: int, after: int, gain: float
) -> Tensor:
    taps = x.new_ones(1) if filter is None else filter.to(x.dtype)
    size = len(taps)
    square = taps.outer(taps) * gain
    weight = square.expand(x.shape[1], 1, size, size)
    if up > 1:
        # A transposed convolution inserts zeros behind all pixels but the last, and pads by size - 1 on both sides.
        v = F.conv_transpose2d(x, weight, stride=up, groups=x.shape[1])
        first, last = before - (size - 1), after + (up - 1) - (size - 1)
        v = F.pad(v, (first, last, first, last))
        return v[:, :, ::down, ::down] if down > 1 else v
    weight = square.flip(0, 1).expand(x.shape[1], 1, size, size)
    if before == after >= 0:
        return F.conv2d(x, weight, stride=down, padding=before, groups=x.shape[1])
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=down, groups=x.shape[1])
