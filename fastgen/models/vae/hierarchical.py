"""A hierarchical VAE of images: bottom-up features, then groups of latents from coarse to fine.

Encoder and decoder share the way down (Sonderby et al. 2016: ladder VAE), and a posterior is written as a change of its
prior (Vahdat & Kautz 2020, section 3.2: NVAE).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import bounded, one_of
from ...errors import ConfigError
from .convolutional import check_size
from .likelihoods import KINDS, SIGMAS, likelihood
from .vae import VAE, Normal


@dataclass(frozen=True, kw_only=True)
class HierarchicalVAEConfig:
    """Options of :class:`HierarchicalVAE`.

    Level i, the finest being 0, works at 1 / 2^(i + 1) of the image. channels: of its maps. latents: channels of each
    of its groups of latents. groups: how many there are at it; the first group of all is the coarsest level's.
    blocks: residual blocks of a level on the way up. Others: see ``models.vae.convolutional.ConvolutionalVAEConfig``.
    """

    sample_size: tuple[int, ...] = bounded(1, 4096, default=(32, 32), max_items=2)
    in_channels: int = bounded(1, 64, default=3)
    channels: tuple[int, ...] = bounded(1, 4096, default=(32, 64), max_items=8)
    latents: tuple[int, ...] = bounded(1, 4096, default=(2, 8), max_items=8)
    groups: tuple[int, ...] = bounded(1, 32, default=(1, 1), max_items=8)
    blocks: int = bounded(1, 32, default=1)
    likelihood: str = one_of(*KINDS, default="logistic")
    sigma: str = one_of(*SIGMAS, default="learned")
    sigma_value: float = bounded(1e-3, 1e3, default=0.1)
    levels: int = bounded(2, 65536, default=256)
    num_classes: int | None = bounded(1, 1_000_000, default=None)

    def __post_init__(self) -> None:
        check_size(self.sample_size, len(self.channels))
        for name in ("latents", "groups"):
            if len(getattr(self, name)) != len(self.channels):
                raise ConfigError(
                    f"expected {len(self.channels)} numbers, one for each level, got {list(getattr(self, name))}",
                    argument=name,
                )


class Residual(nn.Module):
    """x + two 3x3 convolutions of it, each behind a SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Group(nn.Module):
    """A group of latents: state [B, C, H, W] and features of x of the same shape -> distributions of z [B, L, H, W]."""

    def __init__(self, channels: int, latents: int) -> None:
        super().__init__()
        self.prior = nn.Conv2d(channels, 2 * latents, 3, padding=1)
        self.posterior = nn.Conv2d(2 * channels, 2 * latents, 3, padding=1)
        for conv in (self.prior, self.posterior):  # both are N(0, 1) to begin with
            nn.init.zeros_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        self.inlet = nn.Conv2d(latents, channels, 1)
        self.block = Residual(channels)

    def expected(self, state: Tensor) -> Normal:
        """The prior."""
        return Normal(*self.prior(F.silu(state)).chunk(2, dim=1))

    def seen(self, state: Tensor, features: Tensor) -> Normal:
        """What the posterior adds to the prior's mean, in its deviations, and to its log-variance."""
        return Normal(*self.posterior(F.silu(torch.cat([state, features], dim=1))).chunk(2, dim=1))

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """The state that has taken z in."""
        return self.block(state + self.inlet(z))


class HierarchicalVAE(VAE):
    """A hierarchical VAE of images [B, C, H, W] in [0, 1]; the state is a map [B, channels, H', W']."""

    def __init__(self, config: HierarchicalVAEConfig) -> None:
        super().__init__()
        self.config, self.classes = config, config.num_classes
        height, width = config.sample_size
        self.data_shape = (config.in_channels, height, width)
        said = likelihood(config.likelihood, config.sigma, config.sigma_value, config.levels)
        depth, widths = len(config.channels), config.channels
        self.down, self.up, self.levels = nn.ModuleList(), nn.ModuleList(), []
        for i, channels in enumerate(widths):
            before = widths[i - 1] if i else config.in_channels
            blocks = [Residual(channels) for _ in range(config.blocks)]
            self.down.append(nn.Sequential(nn.Conv2d(before, channels, 4, 2, 1), *blocks))
            after = widths[i - 1] if i else said.outputs * config.in_channels
            self.up.append(nn.Sequential(nn.SiLU(), nn.ConvTranspose2d(channels, after, 4, 2, 1)))
        self.group = nn.ModuleList()
        for level in reversed(range(depth)):
            for _ in range(config.groups[level]):
                self.group.append(Group(widths[level], config.latents[level]))
                self.levels.append(level)
        self.latent_shapes = tuple(
            (config.latents[level], height >> (level + 1), width >> (level + 1)) for level in self.levels
        )
        self.start = nn.Parameter(torch.zeros(widths[-1], height >> depth, width >> depth))
        self.embed = None if self.classes is None else nn.Embedding(self.classes, widths[-1])
        self.likelihood = said

    def features(self, x: Tensor, label: Tensor | None) -> list[Tensor]:
        """Of each level, the finest first."""
        found = []
        for level in self.down:
            x = level(x)
            found.append(x)
        return found

    def begin(self, count: int, label: Tensor | None) -> Tensor:
        state = self.start.expand(count, *self.start.shape)
        return state if self.embed is None else state + self.embed(label)[:, :, None, None]

    def prior(self, group: int, state: Tensor) -> Normal:
        return self._group(group).expected(state)

    def posterior(self, group: int, state: Tensor, prior: Normal, features: list[Tensor]) -> Normal:
        change = self._group(group).seen(state, features[self.levels[group]])
        deviation = torch.exp(0.5 * prior.log_var)
        return Normal(prior.mean + deviation * change.mean, prior.log_var + change.log_var)

    def absorb(self, group: int, state: Tensor, z: Tensor) -> Tensor:
        state = self.group[group](state, z)
        last = group + 1 == len(self.levels) or self.levels[group + 1] != self.levels[group]
        return self.up[self.levels[group]](state) if last else state

    def output(self, state: Tensor) -> Tensor:
        return state

    def _group(self, group: int) -> Group:
        found = self.group[group]
        assert isinstance(found, Group)
        return found
