"""The reference for CPU tensors that need no gradient: the same numbers from fewer passes over memory.

What comes after the norm is done in place, 16-bit batches are widened a sample at a time, and PyTorch's own
channels-last kernel is used, which takes a third of the time of a copy to NCHW and back, except where the variance of
a group with a large mean would be lost in it, and in float64. Its float32 sums are rougher than the reference's: for
256x256 pixels results are off by 1e-5 rather than 2e-7.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import LOW_PRECISION, maybe, output_format

# |mean| / standard deviation beyond which PyTorch's channels-last kernel is not used: its variance by E[x^2] - E[x]^2
# loses a relative 2^-24 * ratio^2, times what its sums, kept one after the other in float32, have gathered.
MEAN_OVER_DEVIATION = 4.0
# Widened whole up to here (elements): larger float32 copies leave the cache, and malloc returns them to the system.
WHOLE = 1 << 18


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> Tensor:
    """As the reference; no autograd."""
    memory_format = output_format(x, skip)
    v = x if skip is None else torch.cat((x, skip), 1)
    if x.dtype not in LOW_PRECISION:
        y = _norm(v, num_groups, weight, bias, eps, add, scale, shift, act)
        return y.contiguous(memory_format=memory_format)
    weight, bias, add, scale, shift = (maybe(value) for value in (weight, bias, add, scale, shift))
    if v.numel() <= WHOLE:
        y = _norm(v.float(), num_groups, weight, bias, eps, add, scale, shift, act)
        return y.to(x.dtype).contiguous(memory_format=memory_format)
    y = torch.empty(v.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    for i in range(len(v)):
        one = slice(i, i + 1)
        added, scaled, shifted = (None if value is None else value[one] for value in (add, scale, shift))
        y[one] = _norm(v[one].float(), num_groups, weight, bias, eps, added, scaled, shifted, act)
    return y


def _norm(
    v: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    if add is not None:
        v = v + add[:, :, None, None]
    batch, channels, height, width = v.shape
    sizes = (batch, channels, height * width, num_groups, eps)
    if v.dtype == torch.float64:
        v = v.contiguous()
    y, mean, inverse_deviation = torch.native_group_norm(v, weight, bias, *sizes)
    if not v.is_contiguous() and _largest(mean * inverse_deviation) > MEAN_OVER_DEVIATION:
        y = torch.native_group_norm(v.contiguous(), weight, bias, *sizes)[0]
    if scale is not None:
        y.mul_((1.0 + scale)[:, :, None, None])
    if shift is not None:
        y.add_(shift[:, :, None, None])
    return F.silu(y, inplace=True) if act else y


def _largest(values: Tensor) -> float:
    return torch.linalg.vector_norm(values, float("inf")).item()
