"""Residual generators and discriminators: what SAGAN, BigGAN and BigGAN-deep have in common."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import bounded
from ...errors import ConfigError
from .initial import orthogonal
from .layers import (
    ConditionalNorm,
    DeepDiscriminatorBlock,
    DeepGeneratorBlock,
    DiscriminatorBlock,
    GeneratorBlock,
    SelfAttention,
    convolution,
)
from .spectral import spectral

MAX_STAGES = 9
MAX_SIDE = 2048
TOP_EPS = 1e-5  # of the last norm, in the code of BigGAN for PyTorch


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """Options of every residual generator.

    latent: numbers of z. channels: times `multipliers` the channels of each stage's input, and at the end of the last
    one's output; each stage doubles the sides of an image of `bottom` pixels. attention: stages, from 0, behind which
    self-attention stands. num_classes: None for a generator without labels. spectral_norm: of all weights but tables.
    eps: of class-conditional norms. levels: sets of standing statistics, see ``ConditionalNorm``; reversed_levels:
    how they are interpolated.
    """

    latent: int = bounded(1, 8192, default=128)
    out_channels: int = bounded(1, 64, default=3)
    channels: int = bounded(1, 1024, default=64)
    multipliers: tuple[int, ...] = bounded(1, 64, default=(16, 16, 8, 4, 2, 1), max_items=MAX_STAGES + 1)
    bottom: int = bounded(1, 64, default=4)
    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(), max_items=MAX_STAGES)
    num_classes: int | None = bounded(1, 1_000_000, default=1000)
    spectral_norm: bool = True
    eps: float = bounded(1e-12, 1.0, default=1e-5)
    top_eps: float = bounded(1e-12, 1.0, default=TOP_EPS)
    levels: int = bounded(1, 1001, default=1)
    reversed_levels: bool = False

    shared: ClassVar[int] = 0  # numbers of a class's embedding; 0: each norm has a table of its own
    hierarchical: ClassVar[bool] = False
    depth: ClassVar[int] = 0  # blocks of a stage of BigGAN-deep; 0: one block of the other kind

    def __post_init__(self) -> None:
        if len(self.multipliers) < 2:
            raise ConfigError("expected at least 2", argument="multipliers")
        check_attention(self.attention, self.stages)
        if self.side > MAX_SIDE:
            raise ConfigError(
                f"images would be {self.side} pixels wide, at most {MAX_SIDE}", argument="multipliers"
            )
        if self.shared and self.num_classes is None:
            raise ConfigError("a shared embedding needs classes", argument="num_classes")
        if self.hierarchical and not self.depth and self.latent % (self.stages + 1):
            raise ConfigError(
                f"is {self.latent}; the first layer and each stage get a part: {self.stages + 1} in all",
                argument="latent",
            )
        if self.depth and any(width * self.channels % 4 for width in self.multipliers):
            raise ConfigError("times channels: expected multiples of 4", argument="multipliers")
        for a, b in zip(self.multipliers[:-1], self.multipliers[1:], strict=True):
            if self.depth and b > a:
                raise ConfigError("of BigGAN-deep never grow", argument="multipliers")

    @property
    def stages(self) -> int:
        """How often the image's sides are doubled."""
        return len(self.multipliers) - 1

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.bottom << self.stages

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.out_channels, self.side, self.side

    @property
    def part(self) -> int:
        """Numbers of z that the first layer sees, and each stage where z is hierarchical."""
        return self.latent // (self.stages + 1) if self.hierarchical and not self.depth else self.latent

    @property
    def inputs(self) -> int:
        """Numbers of the vector that norms are conditioned on; 0 where they have tables, or nothing."""
        return self.shared + self.part * self.hierarchical if self.shared else 0


class ResidualGenerator(nn.Module):
    """Images [B, out_channels, H, W] in [-1, 1] of z [B, latent] and labels."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * m for m in config.multipliers]
        self.embedding = None
        if config.shared:
            assert config.num_classes is not None
            self.embedding = nn.Embedding(config.num_classes, config.shared)
        first = nn.Linear(config.part + (config.shared if config.depth else 0), widths[0] * config.bottom**2)
        self.first = spectral(first, config.spectral_norm)
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            blocks += self._stage(before, after)
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleDict(
            {str(i): SelfAttention(widths[i + 1], config.spectral_norm) for i in sorted(config.attention)}
        )
        self.norm = ConditionalNorm(
            widths[-1],
            None,
            0,
            eps=config.top_eps,
            levels=config.levels,
            reversed_levels=config.reversed_levels,
        )
        self.last = convolution(widths[-1], config.out_channels, 3, config.spectral_norm)
        orthogonal(self)

    def forward(self, z: Tensor, labels: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """labels: int64 [B], of a network with classes. level: truncations whose standing statistics are taken."""
        first, conditions = self.conditions(z, labels)
        side, per_stage = self.config.bottom, max(self.config.depth, 1)
        x = self.first(first).unflatten(1, (-1, side, side))
        for i, block in enumerate(self.blocks):
            stage = i // per_stage
            x = block(x, conditions[stage], level)
            if (i + 1) % per_stage == 0 and str(stage) in self.attention:
                x = self.attention[str(stage)](x)
        return torch.tanh(self.last(F.relu(self.norm(x, None, level))))

    def conditions(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """What the first layer sees, and what the norms of each stage do: labels, or [embedding, z or a part of it]."""
        config = self.config
        if self.embedding is None:
            return z, [labels] * config.stages
        embedded = self.embedding(labels)
        if config.depth:
            both = torch.cat([embedded, z], dim=1)
            return both, [both] * config.stages
        if not config.hierarchical:
            return z, [embedded] * config.stages
        first, *parts = z.split(config.part, dim=1)
        return first, [torch.cat([embedded, part], dim=1) for part in parts]

    def _stage(self, before: int, after: int) -> list[nn.Module]:
        config = self.config

        def norms(*widths: int) -> list[nn.Module]:
            return [
                ConditionalNorm(
                    width,
                    config.num_classes,
                    config.inputs,
                    eps=config.eps,
                    levels=config.levels,
                    reversed_levels=config.reversed_levels,
                    spectral_norm=config.spectral_norm,
                )
                for width in widths
            ]

        on = config.spectral_norm
        if not config.depth:
            return [GeneratorBlock(before, after, norms(before, after), on)]
        made: list[nn.Module] = []
        for i in range(config.depth):
            last, middle = i == config.depth - 1, before // 4
            found = norms(before, middle, middle, middle)
            made.append(DeepGeneratorBlock(before, after if last else before, last, found, on))
        return made


@dataclass(frozen=True, kw_only=True)
class ResidualDiscriminatorConfig:
    """Options of every residual discriminator.

    size: height and width. channels: times `multipliers` the channels behind each stage, the first `halvings` of which
    halve the image's sides. attention: stages, from 0, behind which self-attention stands. num_classes: of the
    projection (Miyato & Koyama 2018); None for a discriminator without labels.
    """

    in_channels: int = bounded(1, 64, default=3)
    size: int = bounded(1, MAX_SIDE, default=128)
    channels: int = bounded(1, 1024, default=64)
    multipliers: tuple[int, ...] = bounded(1, 64, default=(1, 2, 4, 8, 16, 16), max_items=MAX_STAGES + 1)
    halvings: int = bounded(0, MAX_STAGES, default=5)
    attention: tuple[int, ...] = bounded(0, MAX_STAGES, default=(), max_items=MAX_STAGES)
    num_classes: int | None = bounded(1, 1_000_000, default=1000)
    spectral_norm: bool = True

    depth: ClassVar[int] = 0  # see ``ResidualConfig``

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ConfigError("expected at least 1", argument="multipliers")
        check_attention(self.attention, len(self.multipliers))
        if self.halvings > len(self.multipliers) or self.size % (1 << self.halvings):
            raise ConfigError(
                f"a size of {self.size} and {len(self.multipliers)} stages cannot have {self.halvings}",
                argument="halvings",
            )
        for i in self.attention:
            if (self.size >> min(i + 1, self.halvings)) % 2:
                raise ConfigError(f"an odd number of pixels stands behind stage {i}", argument="attention")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.in_channels, self.size, self.size


class ResidualDiscriminator(nn.Module):
    """Logits [B] of images [B, in_channels, H, W] in [-1, 1] and labels."""

    joint = True  # see ``DCGANDiscriminator``

    def __init__(self, config: ResidualDiscriminatorConfig) -> None:
        super().__init__()
        self.config, on = config, config.spectral_norm
        widths = [config.channels * m for m in config.multipliers]
        before = config.in_channels
        self.first = None
        if config.depth:
            before = config.channels
            self.first = convolution(config.in_channels, before, 3, on)
        blocks: list[nn.Module] = []
        for i, width in enumerate(widths):
            down = i < config.halvings
            if not config.depth:
                blocks.append(DiscriminatorBlock(before, width, down, i == 0, on))
            blocks += [
                DeepDiscriminatorBlock(width if j else before, width, down and j == 0, on)
                for j in range(config.depth)
            ]
            before = width
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleDict(
            {str(i): SelfAttention(widths[i], on) for i in sorted(config.attention)}
        )
        self.head = spectral(nn.Linear(before, 1), on)
        self.embedding = None
        if config.num_classes is not None:
            self.embedding = spectral(nn.Embedding(config.num_classes, before), on)
        orthogonal(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels: int64 [B], of a network with classes."""
        if self.first is not None:
            x = self.first(x)
        per_stage = max(self.config.depth, 1)
        for i, block in enumerate(self.blocks):
            x = block(x)
            stage = i // per_stage
            if (i + 1) % per_stage == 0 and str(stage) in self.attention:
                x = self.attention[str(stage)](x)
        features = F.relu(x).sum((2, 3))
        logits: Tensor = self.head(features).flatten(0)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * features).sum(1)
        return logits


def check_attention(stages: tuple[int, ...], count: int) -> None:
    """ConfigError unless they are different numbers of stages."""
    if len(set(stages)) < len(stages) or any(i >= count for i in stages):
        raise ConfigError(
            f"expected different numbers below {count}, got {list(stages)}", argument="attention"
        )
