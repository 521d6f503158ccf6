"""The mapping network z -> w, and what every style-based generator does with w: truncation and noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....config import bounded
from ....errors import ConfigError
from .layers import SLOPE, EqualizedLinear, unit_rms

MAX_SIDE = 2048
MAX_TAPS = 16
MAX_WIDTHS = 10


@dataclass(frozen=True, kw_only=True)
class StyleConfig:
    """Options of every style-based generator.

    latent: numbers of z. w_dim: of w. size: height and width of the images. widths: channels by resolution, the
        coarsest first; each resolution has twice the side of the one before, so that the coarsest has
        size / 2^(len(widths) - 1) pixels, which must be a whole number (28 pixels: 7, 14, 28 with three widths).
    mapping_layers: of the mapping network. mapping_lr: its learning rate, relative to that of other weights.
    num_classes: None for images without labels; else a label's embedding of w_dim numbers stands behind z.
    """

    latent: int = bounded(1, 8192, default=512)
    w_dim: int = bounded(1, 8192, default=512)
    size: int = bounded(1, MAX_SIDE, default=1024)
    out_channels: int = bounded(1, 64, default=3)
    widths: tuple[int, ...] = bounded(1, 8192, default=(512,), max_items=MAX_WIDTHS)
    mapping_layers: int = bounded(1, 16, default=8)
    mapping_lr: float = bounded(1e-6, 100.0, default=0.01)
    num_classes: int | None = bounded(1, 10_000, default=None)

    least: ClassVar[int] = 1  # pixels of the coarsest resolution's side

    def __post_init__(self) -> None:
        if not self.widths:
            raise ConfigError("expected at least one", argument="widths")
        if self.size % (1 << self.stages) or self.bottom < self.least:
            raise ConfigError(
                f"is {self.size} with {len(self.widths)} widths; expected a multiple of {self.least << self.stages}",
                argument="size",
            )

    @property
    def stages(self) -> int:
        """How often the image's sides are doubled."""
        return len(self.widths) - 1

    @property
    def bottom(self) -> int:
        """Height and width of the coarsest resolution."""
        return self.size >> self.stages

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width of each resolution, the coarsest first."""
        return tuple(self.bottom << i for i in range(len(self.widths)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.out_channels, self.size, self.size


class Mapping(nn.Module):
    """w [B, w_dim] of z [B, latent]: z at unit root mean square, then linear layers, each with a LeakyReLU.

    A label's embedding, at unit root mean square by itself, stands behind z (the code of Karras et al. 2020a). Each
    activation is multiplied by sqrt(2), which keeps the variance (section 4.1 of Karras et al. 2018, after He et al.).
    """

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.embedding = None
        inputs = config.latent
        if config.num_classes is not None:
            self.embedding = EqualizedLinear(config.num_classes, config.w_dim)
            inputs += config.w_dim
        widths = [inputs] + [config.w_dim] * config.mapping_layers
        self.layers = nn.ModuleList(
            EqualizedLinear(a, b, lr_multiplier=config.mapping_lr) for a, b in itertools.pairwise(widths)
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels: int64 [B], of a network with classes."""
        x = unit_rms(z)
        if self.embedding is not None:
            assert labels is not None
            weight, bias = self.embedding.effective()
            assert bias is not None
            x = torch.cat([x, unit_rms(F.embedding(labels, weight.t()) + bias)], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE) * math.sqrt(2)
        return x


class Noises(nn.Module):
    """Fixed noise images, buffers "0", "1", ... of [1, 1, H, W]: those of noise_mode "const"."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.count = len(shapes)
        for i, shape in enumerate(shapes):
            self.register_buffer(str(i), torch.randn(1, 1, *shape))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Tensor:
        return self.get_buffer(str(range(self.count)[i]))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(self.count))


class StyleGenerator(nn.Module):
    """Images of z by way of w: `mapping`, `truncate`, `synthesis`, each to be called by itself.

    mapping(z [B, latent], labels int64 [B] | None) -> w [B, w_dim]; synthesis(ws [B, num_ws, w_dim], noise) -> images
    [B, C, H, W], nominally in [-1, 1] and not clamped. noise: a tensor [B, 1, H_i, W_i] or [1, 1, H_i, W_i] for each of
    `noise_shapes`; None: no noise.

    w_mean: [w_dim], the moving average of w over the training, which truncation draws towards. noises: fixed images of
    noise, one for each of `noise_shapes`.
    """

    w_mean: Tensor

    def __init__(
        self,
        config: StyleConfig,
        synthesis: nn.Module,
        num_ws: int,
        noise_shapes: tuple[tuple[int, int], ...],
    ) -> None:
        super().__init__()
        self.config, self.num_ws, self.noise_shapes = config, num_ws, noise_shapes
        self.mapping = Mapping(config)
        self.synthesis = synthesis
        self.noises = Noises(noise_shapes)
        self.register_buffer("w_mean", torch.zeros(config.w_dim))

    def truncate(self, w: Tensor, psi: Tensor | float = 1.0, cutoff: Tensor | int | None = None) -> Tensor:
        """w [B, w_dim] -> ws [B, num_ws, w_dim]: w_mean + psi (w - w_mean) in the first `cutoff` styles, then w.

        psi: a number, or one for each sample, [B] of w's type. cutoff: of all samples, or int64 [B]; None: all styles.
        At psi 1 ws are w, and at 0 w_mean, bit for bit. (Karras et al. 2019, appendix B.)
        """
        weight = psi if isinstance(psi, Tensor) else torch.full_like(w[:, 0], psi)
        # Not w_mean + psi (w - w_mean), which at psi 1 is w but for a rounding.
        pulled = torch.lerp(self.w_mean.to(w.dtype).expand_as(w), w, weight.to(w.dtype)[:, None])
        ws = pulled[:, None].expand(-1, self.num_ws, -1)
        if cutoff is None:
            return ws
        layers = torch.arange(self.num_ws, device=w.device)
        limit = cutoff[:, None] if isinstance(cutoff, Tensor) else cutoff
        return torch.where((layers < limit).expand(w.shape[0], -1)[..., None], ws, w[:, None])

    def forward(self, z: Tensor, labels: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """Images without truncation, with the fixed noise. level: not looked at; BigGAN's generators have it."""
        ws = self.mapping(z, labels)[:, None].expand(-1, self.num_ws, -1)
        images: Tensor = self.synthesis(ws, list(self.noises))
        return images
