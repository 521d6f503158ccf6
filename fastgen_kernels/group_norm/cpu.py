"""The reference for CPU tensors that need no gradient: the same numbers from fewer passes over memory.

NCHW is left to PyTorch's kernel, which adds in trees. Its channels-last kernel is not used: it adds a group's pixels
one after the other, and takes the variance as E[x^2] - E[x]^2. 16-bit tensors are widened a few samples at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import LOW_PRECISION, maybe, output_format

# Elements up to which a channels-last tensor's copies to NCHW and back cost less than a dozen calls.
SMALL = 1 << 15
# Elements that are worked on at a time: float32 copies of them stay in the cache, and with malloc.
TILE = 1 << 18


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
    norm = _channels_last if memory_format == torch.channels_last and v.numel() > SMALL else _planes
    if x.dtype not in LOW_PRECISION:
        y = norm(v, v is not x, num_groups, weight, bias, eps, add, scale, shift, act)
        return y.contiguous(memory_format=memory_format)
    weight, bias, add, scale, shift = (maybe(value) for value in (weight, bias, add, scale, shift))
    options = num_groups, weight, bias, eps
    if v.numel() <= TILE:
        y = norm(v.float(), True, *options, add, scale, shift, act)
        return y.to(x.dtype).contiguous(memory_format=memory_format)
    y = torch.empty(v.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    samples = max(TILE // v[0].numel(), 1)
    for first in range(0, len(v), samples):
        some = slice(first, first + samples)
        added, scaled, shifted = (None if value is None else value[some] for value in (add, scale, shift))
        y[some] = norm(v[some].float(), True, *options, added, scaled, shifted, act)
    return y


def _planes(
    v: Tensor,
    mine: bool,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    """By PyTorch's kernel for NCHW, whatever v's layout. mine: v may be overwritten."""
    v = v.contiguous()
    batch, channels, height, width = v.shape
    if add is not None:
        v = v.add_(add[:, :, None, None]) if mine else v + add[:, :, None, None]
    if (
        channels == 1 or height == width == 1
    ):  # in both layouts: as channels-last it would get the other kernel
        v = v.reshape(batch, channels, height * width)
    y = torch.native_group_norm(v, weight, bias, batch, channels, height * width, num_groups, eps)[0]
    y = y if y.dim() == 4 else y.view(batch, channels, height, width)
    if scale is not None:
        y.mul_((1.0 + scale)[:, :, None, None])
    if shift is not None:
        y.add_(shift[:, :, None, None])
    return F.silu(y, inplace=True) if act else y


def _channels_last(
    v: Tensor,
    mine: bool,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    """Mean, deviations from it, their mean square: PyTorch's sums over an axis add in trees."""
    batch, channels, height, width = v.shape
    size = channels // num_groups
    terms = size * height * width
    pixels = v.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    sums = pixels.sum(1)
    if add is not None:
        sums.add_(add, alpha=height * width)
    mean = sums.view(batch, num_groups, size).sum(2, keepdim=True).div_(terms)
    centre = mean.expand(batch, num_groups, size).reshape(batch, channels)
    if add is not None:
        centre = centre - add
    y = torch.sub(pixels, centre[:, None], out=pixels if mine else None)
    tiles = y.split(max(TILE // (batch * channels), 1), 1)
    # Not tile.square(), which PyTorch takes as a general power.
    squares = torch.stack([torch.mul(tile, tile).sum(1) for tile in tiles]).sum(0)
    variance = squares.view(batch, num_groups, size).sum(2, keepdim=True).div_(terms)
    gain = variance.add_(eps).rsqrt_().expand(batch, num_groups, size).reshape(batch, 1, channels)
    if weight is not None:
        gain = gain * weight
    offset = v.new_zeros(()) if bias is None else bias
    if scale is not None:
        factor = (1.0 + scale)[:, None]
        gain, offset = gain * factor, offset * factor
    if shift is not None:
        offset = offset + shift[:, None]
    for tile in tiles:
        torch.addcmul(offset, tile, gain, out=tile)
        if act:
            F.silu(tile, inplace=True)
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2)
