"""Adaptive instance normalisation as PyTorch runs it fastest: what benchmarks compare the kernels with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import per_plane


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
    """PyTorch's own norms in x's type, which round every step in half precision; the rest in place where it may be."""
    v = x
    if noise is not None and noise_weight is not None:
        v = torch.addcmul(v, noise.to(x.dtype), per_plane(noise_weight, x.dtype))
    if bias is not None:
        v = v + per_plane(bias, x.dtype)
    if slope_before != 1.0:
        v = F.leaky_relu(v, slope_before)
    gain, offset = (None if t is None else per_plane(t, x.dtype) for t in (scale, shift))
    if mean is not None and std is not None:
        gain, offset = per_plane(std, x.dtype), per_plane(mean, x.dtype)
    if style is not None:
        offset, gain = (t.to(x.dtype) for t in _statistics(style, eps, correction))
    if correction or x.shape[2] * x.shape[3] == 1:
        centre, deviation = _statistics(v, eps, correction)
        y = (v - centre).div_(deviation)
    else:
        y = F.instance_norm(v, eps=eps)
    if gain is not None:
        y = y.mul_(gain)
    if offset is not None:
        y = y.add_(offset)
    if alpha != 1.0:
        y = torch.lerp(v, y, alpha)
    return y if slope_after == 1.0 else F.leaky_relu_(y, slope_after)


def _statistics(v: Tensor, eps: float, correction: int) -> tuple[Tensor, Tensor]:
    """Means and deviations of planes; a single pixel's deviation is sqrt(eps)."""
    correction = min(correction, v.shape[2] * v.shape[3] - 1)
    var, mean = torch.var_mean(v, (2, 3), correction=correction, keepdim=True)
    return mean, var.add_(eps).sqrt_()
