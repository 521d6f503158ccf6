"""Layers that map the channels of each pixel affinely, folded into one map, its inverse and its log-determinant.

ActNorm, the invertible 1x1 convolution, a permutation of channels and a scaling of everything are all y = W x + b over
the channels, and so is any run of them. It is composed once, in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.flow.layers import ActNorm, Affine, Layer, Permutation, Scaling, Standardise
from ..models.flow.linear import InvertibleConv, LUConv, PlainConv
from .exactly import hooked

FOLDED = (ActNorm, Affine, LUConv, Permutation, PlainConv, Scaling, Standardise)


def folds(layer: Layer) -> bool:
    """Whether `fold` takes it. A subclass of one of `FOLDED` may be another map, and so may one with hooks."""
    return type(layer) in FOLDED and not hooked(layer)


@dataclass(frozen=True)
class ChannelMap:
    """y = W x + shift for the C channels of a pixel; everything in float64 on the CPU.

    matrix: W [C, C]; or None, then y[i] = scale[i] * x[index[i]] + shift[i]: no C x C numbers for a permutation of
    thousands. log_det: log |det W|.
    """

    shift: Tensor
    log_det: float
    scale: Tensor | None = None
    index: Tensor | None = None
    matrix: Tensor | None = None

    def dense(self) -> Tensor:
        """W, [C, C]."""
        if self.matrix is not None:
            return self.matrix
        assert self.scale is not None
        assert self.index is not None
        return torch.diag(self.scale)[:, torch.argsort(self.index)]

    def finite(self, dtype: torch.dtype) -> bool:
        """Whether all of it is, in `dtype`."""
        values = [value for value in (self.shift, self.scale, self.matrix) if value is not None]
        return all(bool(value.to(dtype).isfinite().all()) for value in values)

    def then(self, other: ChannelMap) -> ChannelMap:
        """This map, then `other`."""
        log_det = self.log_det + other.log_det
        if other.index is not None and other.scale is not None:
            shift = other.scale * self.shift[other.index] + other.shift
            if self.index is not None and self.scale is not None:
                scale, index = other.scale * self.scale[other.index], self.index[other.index]
                return ChannelMap(shift, log_det, scale, index)
            return ChannelMap(shift, log_det, matrix=other.scale[:, None] * self.dense()[other.index])
        matrix = other.dense()
        return ChannelMap(matrix @ self.shift + other.shift, log_det, matrix=matrix @ self.dense())

    def inverted(self) -> ChannelMap:
        """x from y."""
        if self.index is not None and self.scale is not None:
            index = torch.argsort(self.index)
            scale = 1.0 / self.scale[index]
            return ChannelMap(-scale * self.shift[index], -self.log_det, scale, index)
        matrix = torch.linalg.inv(self.dense())
        return ChannelMap(-(matrix @ self.shift), -self.log_det, matrix=matrix)


def fold(layers: Sequence[Layer], channels: int) -> ChannelMap:
    """The run of `layers`, which all `folds`. Raises CheckpointError naming the layer that has no inverse."""
    whole: ChannelMap | None = None
    for layer in layers:
        layer.check()
        step = _channel_map(copy.deepcopy(layer).to("cpu", torch.float64), channels)
        if not (math.isfinite(step.log_det) and bool(step.shift.isfinite().all())):
            raise CheckpointError("its weights are not finite; was its training stable?", argument=layer.name)
        whole = step if whole is None else whole.then(step)
    assert whole is not None
    return whole


@torch.no_grad()
def _channel_map(layer: nn.Module, channels: int) -> ChannelMap:
    """One layer, whose parameters are float64 on the CPU."""
    zero = torch.zeros(channels, dtype=torch.float64, device="cpu")
    same = torch.arange(channels, device="cpu")
    if isinstance(layer, ActNorm):
        volume = float(layer.scale.abs().log().sum())
        return ChannelMap(layer.scale * layer.loc, volume, layer.scale.detach(), same)
    if isinstance(layer, Scaling):
        return ChannelMap(zero, float(layer.log_scale.sum()), layer.log_scale.exp(), same)
    if isinstance(layer, Affine):
        volume = channels * math.log(abs(layer.scale))
        return ChannelMap(zero + layer.shift, volume, zero + layer.scale, same)
    if isinstance(layer, Permutation):
        return ChannelMap(zero, 0.0, zero + 1.0, layer.index)
    assert isinstance(layer, InvertibleConv)
    matrix, bias, log_det = layer.matrix()
    return ChannelMap(bias, float(log_det), matrix=matrix)
