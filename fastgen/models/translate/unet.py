"""The U-Net of pix2pix (Isola et al. 2017, section 6.1.1, as the authors' PyTorch code has it)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import bounded, one_of
from ...errors import ConfigError
from .layers import NORMS, ConvNorm, Masks, check_kept, check_norm_mode, initialise

SLOPE = 0.2  # of LeakyReLU on the way down


@dataclass(frozen=True, kw_only=True)
class UNetGeneratorConfig:
    """Options of :class:`UNetGenerator`.

    channels: of the first layer (the original's ngf); layers have 1, 2, 4, 8, 8, ... times as many.
    downs: how often the image is halved (num_downs): 8 for 256x256, 7 for 128x128, 5 for 32x32. Sides of images are
        multiples of 2^downs.
    norm: "batch" | "instance" (whose convolutions have biases) | "none".
    dropout: of rate 1/2 behind the up layers of full width but the innermost: downs - 5 of them, none with 5 downs.
    """

    in_channels: int = bounded(1, 64, default=3)
    out_channels: int = bounded(1, 64, default=3)
    channels: int = bounded(1, 1024, default=64)
    downs: int = bounded(5, 9, default=8)
    norm: str = one_of(*NORMS, default="batch")
    dropout: bool = False

    def __post_init__(self) -> None:
        if self.dropout and self.downs == 5:
            raise ConfigError(
                "dropout stands behind all but 5 of the up layers, and downs is 5: leave it false, or take more",
                argument="dropout",
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each layer on the way down, the outermost first."""
        return tuple(self.channels * min(2**i, 8) for i in range(self.downs))

    def has_dropout(self, layer: int) -> bool:
        """Whether up layer `layer`, the outermost being 0, is followed by dropout."""
        return self.dropout and 4 <= layer < self.downs - 1


class UNetGenerator(nn.Module):
    """x [B, in_channels, H, W] in [-1, 1] -> [B, out_channels, H, W] in [-1, 1]; H and W multiples of `multiple`.

    Layer i of `down` and layer i of `up`, the outermost being 0, work at the same resolution.
    """

    def __init__(self, config: UNetGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        bias, last = config.norm == "instance", config.downs - 1
        down, up = [], []
        for i, width in enumerate(config.widths):
            before = config.widths[i - 1] if i else config.in_channels
            conv = nn.Conv2d(before, width, 4, 2, 1, bias=bias)
            down.append(ConvNorm(conv, config.norm if 0 < i < last else "none"))
            inputs, outputs = width if i == last else 2 * width, before if i else config.out_channels
            back = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias or i == 0)
            up.append(ConvNorm(back, config.norm if i else "none"))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        initialise(self)

    @property
    def multiple(self) -> int:
        """What both sides of an image are multiples of."""
        return 1 << self.config.downs

    @property
    def least(self) -> int:
        """The least side of an image."""
        return self.multiple

    def dropout_count(self, height: int, width: int) -> int:
        """N: activations of all dropout layers for an image of height x width; 0 without dropout."""
        counts = (
            self.config.widths[i - 1] * (height >> i) * (width >> i)
            for i in range(self.config.downs)
            if self.config.has_dropout(i)
        )
        return sum(counts)

    def forward(self, x: Tensor, kept: Tensor | None = None, norm_mode: str = "instance") -> Tensor:
        """kept: bool [B, dropout_count(H, W)] or None, see :class:`~fastgen.models.translate.layers.Masks`;
        norm_mode: see :class:`~fastgen.models.translate.layers.BatchNorm`. Both are for evaluation mode."""
        check_norm_mode(norm_mode)
        if kept is not None:
            check_kept(kept, x.shape[0], self.dropout_count(*x.shape[2:]))
        masks, skips = Masks(kept), []
        for i, layer in enumerate(self.down):
            x = layer(F.leaky_relu(x, SLOPE) if i else x, norm_mode)
            skips.append(x)
        last = self.config.downs - 1
        for i in reversed(range(self.config.downs)):
            x = self.up[i](F.relu(x if i == last else torch.cat([skips[i], x], dim=1)), norm_mode)
            if self.config.has_dropout(i):
                x = masks(x, self.training)
        return torch.tanh(x)
