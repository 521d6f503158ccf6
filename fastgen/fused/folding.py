"""Weights that are computed from others in every call, computed once: batch norm, weight norm, spectral norm."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fusion, parametrize

from ..models.building import without_values
from ..models.flow.networks import WeightNormConv
from .exactly import hooked

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def folded(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """Blocks that follow each other, as fewer: parametrisations (``torch.nn.utils.parametrizations``: weight norm,
    spectral norm, your own) and `WeightNormConv` by their weight now, a batch norm within the layer before it.

    What is folded has weights of its own. A batch norm without running statistics, and anything with hooks, stays.
    """
    made: list[nn.Module] = []
    for block in blocks:
        block = baked(block)
        before = made[-1] if made else None
        if before is not None and _folds(before, block):
            made[-1] = merged(before, block)
        else:
            made.append(block)
    return made


def baked(block: nn.Module) -> nn.Module:
    """`block` with plain parameters where they are computed from others; else itself."""
    if hooked(block):
        return block
    if type(block) is WeightNormConv:
        return weight_norm(block)
    if not parametrize.is_parametrized(block):
        return block
    block.eval()  # spectral norm takes a step of its power iteration in training mode
    values = {name: getattr(block, name).detach() for name in block.parametrizations}  # type: ignore[union-attr]
    kind: Any = type(block).__bases__[0]  # the class from which `parametrize` has made one of its own
    made: nn.Module = kind.__new__(kind)
    vars(made).update(vars(block))
    made._modules = {name: module for name, module in block._modules.items() if name != "parametrizations"}
    made._parameters = dict(block._parameters)
    for name, value in values.items():
        made._parameters[name] = nn.Parameter(value.clone(), requires_grad=False)
    return made


@torch.no_grad()
def weight_norm(block: WeightNormConv) -> nn.Conv2d:
    """The convolution with its filters computed once."""
    out_channels, in_channels, size, _ = block.direction.shape
    with without_values():
        conv = nn.Conv2d(in_channels, out_channels, size, padding=block.padding)
    conv.weight = nn.Parameter(block.weight().detach(), requires_grad=False)
    conv.bias = block.bias
    return conv


def _folds(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether `norm`, behind `layer`, is a map of its channels with numbers that are known."""
    known = type(norm) in BATCH_NORMS and norm.running_mean is not None and not norm.training
    return known and type(layer) in (*CONVOLUTIONS, nn.Linear) and not hooked(layer) and not hooked(norm)


@torch.no_grad()
def merged(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """`layer` and the batch norm behind it as one layer; products in float64, for one rounding."""
    dtype: torch.dtype = layer.weight.dtype  # type: ignore[assignment]
    wide: Any = copy.deepcopy(layer).double()
    wide_norm: Any = copy.deepcopy(norm).double()
    if isinstance(layer, nn.Linear):
        made: nn.Module = fusion.fuse_linear_bn_eval(wide, wide_norm)
    else:
        transposed = type(layer).__name__.startswith("ConvTranspose")
        made = fusion.fuse_conv_bn_eval(wide, wide_norm, transpose=transposed)
    return made.to(dtype).requires_grad_(False)
