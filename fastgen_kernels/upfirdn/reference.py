"""Upsample, FIR filter, downsample, and a convolution's epilogue, in plain PyTorch.

    v = downsample(FIR(pad(upsample(x)))) * gain              Karras et al. 2019 and 2020: blur, resampling
    v = v * scale + noise * noise_weight + bias               of StyleGAN2: demodulation, noise, bias
    y = LeakyReLU(v) * act_gain * post_scale                  ... and the next layer's modulation

Upsampling puts up - 1 zeros behind every pixel, padding adds zeros or, where negative, crops, and the filter is the
outer product of a vector with itself, convolved as mathematics has it (flipped), as in Parks and McClellan's `upfirdn`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..adain.reference import memory_format, per_plane, working_dtype


def filtered(
    v: Tensor, taps: Tensor | None, up: int, down: int, before: int, after: int, gain: float
) -> Tensor:
    """The first formula, of v [B, C, H, W]; taps [T] in v's type, or None for a single 1."""
    channels, (height, width) = v.shape[1], v.shape[2:]
    if up > 1:
        v = F.pad(v[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1))
        v = v.reshape(-1, channels, height * up, width * up)
    if before or after:
        v = F.pad(v, (before, after, before, after))
    if taps is None:
        v = v[:, :, ::down, ::down].clone() if down > 1 else v
    else:
        # PyTorch's convolution does not flip its filter.
        row = taps.flip(0).expand(channels, 1, 1, -1)
        v = F.conv2d(v, row, stride=(1, down), groups=channels)
        v = F.conv2d(v, row.transpose(2, 3), stride=(down, 1), groups=channels)
    return v if gain == 1.0 else v * gain


def epilogue(
    v: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    bias: Tensor | None,
    slope: float,
    act_gain: float,
    post_scale: Tensor | None,
) -> Tensor:
    """The other two formulas, in v's type."""
    if scale is not None:
        v = v * per_plane(scale, v.dtype)
    if noise is not None and noise_weight is not None:
        v = v + noise.to(v.dtype) * per_plane(noise_weight, v.dtype)
    if bias is not None:
        v = v + per_plane(bias, v.dtype)
    if slope != 1.0:
        v = F.leaky_relu(v, slope)
    if act_gain != 1.0:
        v = v * act_gain
    return v if post_scale is None else v * per_plane(post_scale, v.dtype)


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
    """Resampling and epilogue; arguments and result as `fastgen_kernels.upfirdn` describes."""
    dtype = working_dtype(x)
    before, after = padding
    v = filtered(x.to(dtype), None if filter is None else filter.to(dtype), up, down, before, after, gain)
    v = epilogue(v, scale, noise, noise_weight, bias, slope, act_gain, post_scale)
    # Where nothing was to be done the result is a tensor of its own all the same.
    v = v.clone() if v is x else v
    return v.to(x.dtype).contiguous(memory_format=memory_format(x))


def output_size(size: int, taps: int, up: int, down: int, padding: tuple[int, int]) -> int:
    """Pixels of a side of `size` pixels afterwards."""
    return (size * up + padding[0] + padding[1] - taps) // down + 1


def output_shape(
    x: Tensor, filter: Tensor | None, up: int, down: int, padding: tuple[int, int]
) -> tuple[int, int, int, int]:
    """[B, C, OH, OW]."""
    taps = 1 if filter is None else len(filter)
    height, width = (output_size(size, taps, up, down, padding) for size in x.shape[2:])
    return x.shape[0], x.shape[1], height, width
