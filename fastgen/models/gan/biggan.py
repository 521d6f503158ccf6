"""BigGAN and BigGAN-deep (Brock et al. 2019): a shared embedding of classes, and z in every stage."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ...config import bounded
from ...errors import ConfigError
from .residual import (
    MAX_STAGES,
    ResidualConfig,
    ResidualDiscriminator,
    ResidualDiscriminatorConfig,
    ResidualGenerator,
)


@dataclass(frozen=True, kw_only=True)
class BigGANConfig(ResidualConfig):
    """See :class:`ResidualConfig`; the defaults are the paper's network for 128x128 pixels (table 4).

    shared: numbers of a class's embedding. hierarchical: z is cut into a part of the first layer and one of each
    stage, which stands behind the embedding in the norms' condition (section 3.1).
    """

    latent: int = bounded(1, 8192, default=120)
    channels: int = bounded(1, 1024, default=96)
    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(3,), max_items=MAX_STAGES)
    shared: int = bounded(1, 8192, default=128)  # type: ignore[misc]
    hierarchical: bool = True  # type: ignore[misc]


class BigGAN(ResidualGenerator):
    """Images of z and labels."""


@dataclass(frozen=True, kw_only=True)
class BigGANDiscriminatorConfig(ResidualDiscriminatorConfig):
    """See :class:`ResidualDiscriminatorConfig`; the defaults are the paper's network for 128x128 pixels (table 4)."""

    channels: int = bounded(1, 1024, default=96)
    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(0,), max_items=MAX_STAGES)


class BigGANDiscriminator(ResidualDiscriminator):
    """Logits by residual blocks, self-attention and a projection."""


@dataclass(frozen=True, kw_only=True)
class BigGANDeepConfig(ResidualConfig):
    """See :class:`ResidualConfig`; the defaults are the paper's network for 128x128 pixels (table 7).

    shared: numbers of a class's embedding, before z in the condition of the first layer and of all norms. depth:
    blocks of a stage, the last of which doubles the sides.
    """

    channels: int = bounded(1, 1024, default=128)
    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(3,), max_items=MAX_STAGES)
    shared: int = bounded(1, 8192, default=128)  # type: ignore[misc]
    depth: int = bounded(1, 8, default=2)  # type: ignore[misc]
    hierarchical = True


class BigGANDeep(ResidualGenerator):
    """Images of z and labels, by blocks with bottlenecks."""


@dataclass(frozen=True, kw_only=True)
class BigGANDeepDiscriminatorConfig(ResidualDiscriminatorConfig):
    """See :class:`ResidualDiscriminatorConfig`; the defaults are the paper's network for 128x128 pixels (table 7)."""

    channels: int = bounded(1, 1024, default=128)
    multipliers: tuple[int, ...] = bounded(1, 64, default=(2, 4, 8, 16, 16), max_items=MAX_STAGES + 1)
    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(0,), max_items=MAX_STAGES)
    depth: int = bounded(1, 8, default=2)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = [self.channels, *(self.channels * m for m in self.multipliers)]
        if any(b < a or b % 4 for a, b in itertools.pairwise(widths)):
            raise ConfigError(
                "times channels: expected multiples of 4 that never shrink", argument="multipliers"
            )


class BigGANDeepDiscriminator(ResidualDiscriminator):
    """Logits by blocks with bottlenecks, self-attention and a projection."""
