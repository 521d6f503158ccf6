"""Adaptive instance normalisation in plain PyTorch, with what StyleGAN does before it and PatchGAN after it.

Huang and Belongie 2017, eq. 8, with the mean and deviation of every plane (sample, channel) over its pixels,

    v = LeakyReLU(x + noise * noise_weight + bias)              the epilogue of StyleGAN's convolutions
    n = (v - mean(v)) / sqrt(var(v) + eps)
    y = alpha * (scale * n + shift) + (1 - alpha) * v           scale = std(style), shift = mean(style)
    y = LeakyReLU(y)                                            PatchGAN's order

The variance is taken of deviations from the mean, in float32 at least.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def working_dtype(x: Tensor) -> torch.dtype:
    """The type that everything between reading x and writing y is computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pixel_stride(x: Tensor) -> int:
    """Elements from a pixel of x [B, C, H, W] to the next, 1 where there is none."""
    height, width = x.shape[2:]
    return x.stride(3) if width > 1 else x.stride(2) if height > 1 else 1


def memory_format(x: Tensor) -> torch.memory_format:
    """The output's memory format: contiguous where x's planes are, if only as a slice; else channels-last."""
    return torch.contiguous_format if pixel_stride(x) == 1 else torch.channels_last


def per_plane(value: Tensor, dtype: torch.dtype) -> Tensor:
    """[B or 1, C] or [C] as a factor of [B, C, H, W]."""
    value = value if value.dtype == dtype else value.to(dtype)  # `to` takes a microsecond to do nothing
    return value.view(-1, value.shape[-1], 1, 1)


def content(
    x: Tensor, bias: Tensor | None, noise: Tensor | None, noise_weight: Tensor | None, slope: float
) -> Tensor:
    """What is normalised: LeakyReLU(x + noise * noise_weight + bias), in the working type."""
    dtype = working_dtype(x)
    v = x.to(dtype)
    if noise is not None and noise_weight is not None:
        v = v + noise.to(dtype) * per_plane(noise_weight, dtype)
    if bias is not None:
        v = v + per_plane(bias, dtype)
    return v if slope == 1.0 else F.leaky_relu(v, slope)


def spread(d: Tensor, eps: float, correction: int) -> Tensor:
    """Standard deviations sqrt(var + eps) [B, C, 1, 1] of planes, from deviations d off their means."""
    if correction:
        # One pixel has no spread, not an undefined one.
        var = d.square().sum((2, 3), keepdim=True) / max(d.shape[2] * d.shape[3] - correction, 1)
    else:
        var = d.square().mean((2, 3), keepdim=True)
    return (var + eps).sqrt()


def deviations(v: Tensor, eps: float, correction: int) -> tuple[Tensor, Tensor, Tensor]:
    """v less its planes' means; the means; the standard deviations sqrt(var + eps), both [B, C, 1, 1]."""
    mean = v.mean((2, 3), keepdim=True)
    d = v - mean
    return d, mean, spread(d, eps, correction)


def adain(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    style: Tensor | None = None,
    alpha: float = 1.0,
    eps: float = 1e-5,
    correction: int = 0,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    slope_before: float = 1.0,
    slope_after: float = 1.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """Adaptive instance normalisation; arguments and result as `fastgen_kernels.adain` describes."""
    dtype = working_dtype(x)
    v = content(x, bias, noise, noise_weight, slope_before)
    d, _, deviation = deviations(v, eps, correction)
    if style is not None:
        _, target_mean, target_std = deviations(style.to(dtype), eps, correction)
        y = d / deviation * target_std + target_mean
    else:
        scale, shift = (scale if std is None else std), (shift if mean is None else mean)
        y = d / deviation
        y = y if scale is None else y * per_plane(scale, dtype)
        y = y if shift is None else y + per_plane(shift, dtype)
    if alpha != 1.0:
        y = alpha * y + (1.0 - alpha) * v
    if slope_after != 1.0:
        y = F.leaky_relu(y, slope_after)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))
