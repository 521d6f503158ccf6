"""StyleGAN2's modulated convolution in plain PyTorch, without weights for every sample.

    w'[b, o, i, k] = w[o, i, k] * style[b, i]                               Karras et al. 2020, eq. 1
    w''[b, o, i, k] = w'[b, o, i, k] / sqrt(sum over i, k of w'[b, o, i, k]^2 + eps)            eq. 3
    y[b] = LeakyReLU(FIR(conv(x[b], w''[b])) + noise * noise_weight + bias) * act_gain * post_scale

A style is the same for all taps, so that it may as well be multiplied to the activations, and the root, the same for
all inputs of an output channel, divides the result: conv(x, w'') = demodulation * conv(style * x, w). Then all samples
share one weight, and the convolution is an ordinary one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..adain.reference import memory_format, per_plane, working_dtype
from ..upfirdn.reference import epilogue, filtered


def demodulation(style: Tensor, energy: Tensor, eps: float) -> Tensor:
    """1 / sqrt(sum of (w * style)^2 + eps), [B, O], of styles [B, I] and sums of squares over taps `energy` [O, I]."""
    return (style.square() @ energy.t() + eps).rsqrt()


def weight_energy(weight: Tensor) -> Tensor:
    """Sums of squares over the taps, [O, I], float32 (float64 of float64)."""
    return weight.to(working_dtype(weight)).square().sum((2, 3))


def padding_behind(size: int, taps: int) -> tuple[int, int]:
    """Rows of zeros (before, after) for the filter behind a transposed convolution of stride 2.

    size: of its kernel. Twice the sides are left, and the filter's centre lies on the kernel's.
    """
    rest = (taps - 2) - (size - 1)
    return (rest + 1) // 2 + 1, rest // 2 + 1


def convolved(x: Tensor, weight: Tensor, up: int) -> Tensor:
    """The convolution, of the same size; with up 2 transposed, of stride 2 and all that it touches."""
    if up == 1:
        return F.conv2d(x, weight, padding=weight.shape[2] // 2)
    return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)


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
    """The formulas above; arguments and result as `fastgen_kernels.modulated_conv` describes."""
    dtype = working_dtype(x)
    v, styles = x.to(dtype), style.to(dtype)
    if not scaled:
        v = v * per_plane(styles, dtype)
    v = convolved(v, weight.to(dtype), up)
    if filter is not None:
        ends = padding_behind(weight.shape[2], len(filter))
        v = filtered(v, filter.to(dtype), 1, 1, *ends, float(up * up))
    scale = None
    if demodulate:
        scale = demodulation(styles, weight_energy(weight) if energy is None else energy.to(dtype), eps)
    v = epilogue(v, scale, noise, noise_weight, bias, slope, act_gain, post_scale)
    return v.to(x.dtype).contiguous(memory_format=memory_format(x))


def output_shape(x: Tensor, weight: Tensor, up: int) -> tuple[int, int, int, int]:
    """[B, O, OH, OW]."""
    return x.shape[0], weight.shape[0], x.shape[2] * up, x.shape[3] * up
