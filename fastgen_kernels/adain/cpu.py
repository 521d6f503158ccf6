"""Adaptive instance normalisation on CPU, where no gradient is asked for: the reference with fewer passes.

Every new tensor costs as much there as the arithmetic, so deviations are scaled in place, and PyTorch's own
normalisations take over where nothing but one is wanted. Not its group norm of channels-last tensors, which
takes the variance as E[x^2] - E[x]^2, and not group norm in half precision, which would round twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import deviations, memory_format, per_plane, spread, working_dtype

# Elements up to which two copies between layouts cost less than the operations that they save.
SMALL = 8192


def adain(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    style: Tensor | None,
    alpha: float,
    eps: float,
    correction: int,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    slope_before: float,
    slope_after: float,
) -> Tensor:
    """Adaptive instance normalisation; arguments and result as `fastgen_kernels.adain` describes."""
    dtype = working_dtype(x)
    gain = None if scale is None else per_plane(scale, dtype)
    offset = None if shift is None else per_plane(shift, dtype)
    if style is not None:
        _, offset, gain = deviations(style.to(dtype), eps, correction)
    planar = x.is_contiguous()
    only_norm = (
        (planar or x.numel() <= SMALL) and alpha == 1.0 and not correction and x.shape[2] * x.shape[3] > 1
    )
    untouched = bias is None and noise is None and slope_before == 1.0
    if only_norm and untouched and x.dtype != dtype and slope_after in (0.0, 1.0):  # others would round again
        y = _batch_norm(x.contiguous(), gain, offset, eps)
        y = y if slope_after == 1.0 else y.relu_()
        return y if planar else y.contiguous(memory_format=memory_format(x))

    v = x if untouched else _content(x, dtype, bias, noise, noise_weight, slope_before)
    v = v if v.dtype == dtype else v.to(dtype)
    if only_norm:
        y = torch.group_norm(v.contiguous(), v.shape[1], None, None, eps)
    else:
        mean = v.mean((2, 3), keepdim=True)
        y = v - mean if v is x else v.sub_(mean)
        deviation = spread(y, eps, correction)
        gain = 1.0 / deviation if gain is None else gain / deviation
        if alpha != 1.0:
            # alpha * (gain * d + offset) + (1 - alpha) * (d + mean)
            gain = alpha * gain + (1.0 - alpha)
            offset = (1.0 - alpha) * mean + (0.0 if offset is None else alpha * offset)
    if gain is not None:
        y.mul_(gain)
    if offset is not None:
        y.add_(offset)
    if slope_after != 1.0:
        F.leaky_relu_(y, slope_after)
    y = y if x.dtype == dtype else y.to(x.dtype)
    return y if planar else y.contiguous(memory_format=memory_format(x))


def _content(
    x: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    slope: float,
) -> Tensor:
    """`reference.content` in one new tensor."""
    v = x.clone() if x.dtype == dtype else x.to(dtype)
    if noise is not None and noise_weight is not None:
        v.addcmul_(noise if noise.dtype == dtype else noise.to(dtype), per_plane(noise_weight, dtype))
    if bias is not None:
        v.add_(per_plane(bias, dtype))
    return v if slope == 1.0 else F.leaky_relu_(v, slope)


def _batch_norm(x: Tensor, gain: Tensor | None, offset: Tensor | None, eps: float) -> Tensor:
    """Batch norm with a channel for every plane of x, in half precision: float32 inside, rounded once.

    Without float32 parameters it would round the statistics too.
    """
    batch, channels, height, width = x.shape
    planes = batch * channels
    gain = x.new_ones(planes, dtype=torch.float32) if gain is None else _of_planes(gain, batch, channels)
    offset = (
        x.new_zeros(planes, dtype=torch.float32) if offset is None else _of_planes(offset, batch, channels)
    )
    return F.batch_norm(x.view(1, planes, height, width), None, None, gain, offset, True, 0.0, eps).view(
        x.shape
    )


def _of_planes(value: Tensor, batch: int, channels: int) -> Tensor:
    return value.expand(batch, channels, 1, 1).reshape(batch * channels)
