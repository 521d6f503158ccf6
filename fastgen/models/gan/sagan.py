"""SAGAN (Zhang et al. 2019): self-attention, spectral norm in both networks, batch norm with tables of classes."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import bounded
from .residual import (
    MAX_STAGES,
    ResidualConfig,
    ResidualDiscriminator,
    ResidualDiscriminatorConfig,
    ResidualGenerator,
)


@dataclass(frozen=True, kw_only=True)
class SAGANConfig(ResidualConfig):
    """See :class:`ResidualConfig`; the defaults are the paper's network for 128x128 pixels."""

    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(2,), max_items=MAX_STAGES)


class SAGAN(ResidualGenerator):
    """Images of z and labels; every norm has a table of scales and shifts for each class."""


@dataclass(frozen=True, kw_only=True)
class SAGANDiscriminatorConfig(ResidualDiscriminatorConfig):
    """See :class:`ResidualDiscriminatorConfig`; the defaults are the paper's network for 128x128 pixels."""

    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(1,), max_items=MAX_STAGES)


class SAGANDiscriminator(ResidualDiscriminator):
    """Logits by residual blocks, self-attention and a projection."""
