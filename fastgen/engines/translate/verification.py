"""How a translate engine rounds: besides its layers, weights that norms of training are folded into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastgen_kernels.op import UNIT_ROUNDOFF

from ...models.translate.layers import BatchNorm, ConvNorm
from ..layers import Name, jittering, rounded_off


@contextmanager
def rounding_off(
    networks: nn.ModuleDict,
    known: Mapping[Name, Tensor | None],
    dtype: torch.dtype,
    norm_mode: str,
    generator: torch.Generator,
) -> Iterator[None]:
    """Within the block `networks` round at random; folded weights once for all pixels, which no mean evens out."""
    kept: list[tuple[Tensor, Tensor]] = []
    if norm_mode == "running":
        for block in networks.modules():
            if isinstance(block, ConvNorm) and isinstance(block.norm, BatchNorm):
                weight = block.conv.weight
                kept.append((weight, weight.data))
                weight.data = rounded_off(weight.data, 1.01 * UNIT_ROUNDOFF[dtype], generator)
    try:
        with jittering(networks, known, dtype, generator):
            yield
    finally:
        for weight, data in kept:
            weight.data = data
