"""The patch convolution as PyTorch runs it fastest: what benchmarks compare the kernels with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .layout import channels_last
from .reference import PADDING

_dense = WeakTensorKeyDictionary()


def patch_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 2,
    negative_slope: float | None = 0.2,
) -> Tensor:
    """The activation in place, and the weight as a network of PyTorch's own would keep it."""
    y = F.conv2d(x, dense_weight(x, weight), bias, stride, PADDING)
    return y if negative_slope is None else F.leaky_relu_(y, negative_slope)


def dense_weight(x: Tensor, weight: Tensor) -> Tensor:
    """`weight` in x's memory format without padding; made once outside of compiled code."""
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    if weight.is_contiguous(memory_format=layout):
        return weight
    if torch.compiler.is_compiling():
        return weight.contiguous(memory_format=layout)
    kept: dict[torch.memory_format, Tensor] = _dense.setdefault(weight, {})
    if layout not in kept:
        kept[layout] = weight.contiguous(memory_format=layout)
    return kept[layout]
