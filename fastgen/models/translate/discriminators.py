"""PatchGAN: discriminators that judge patches (Isola et al. 2017, sections 3.2.2 and 6.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import bounded, one_of
from .layers import NORMS, ConvNorm, check_norm_mode, initialise

SLOPE = 0.2  # of every LeakyReLU


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """Options of :class:`PatchDiscriminator`.

    in_channels: of x, the image that was translated; 0 for a discriminator that sees y alone, as CycleGAN's.
    out_channels: of y, the image to be judged. channels: of the first layer (the original's ndf).
    layers: convolutions of stride 2 (n_layers): patches of 16x16 pixels with 1, 34 with 2, 70 with 3, 142 with 4,
        286 with 5.
    norm: "batch" | "instance" (whose convolutions have biases) | "none".
    """

    in_channels: int = bounded(0, 64, default=3)
    out_channels: int = bounded(1, 64, default=3)
    channels: int = bounded(1, 1024, default=64)
    layers: int = bounded(1, 6, default=3)
    norm: str = one_of(*NORMS, default="batch")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each convolution but the last."""
        return tuple(self.channels * min(2**i, 8) for i in range(self.layers + 1))


class PatchDiscriminator(nn.Module):
    """Logits of patches: of x [B, in_channels, H, W] and y [B, out_channels, H, W], in [-1, 1], to [B, 1, h, w]."""

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        before, self.layers = config.in_channels + config.out_channels, nn.ModuleList()
        for i, width in enumerate(config.widths):
            conv = nn.Conv2d(
                before, width, 4, 2 if i < config.layers else 1, 1, bias=i == 0 or config.norm == "instance"
            )
            self.layers.append(ConvNorm(conv, config.norm if i else "none"))
            before = width
        self.head = nn.Conv2d(before, 1, 4, 1, 1)
        initialise(self)

    @property
    def least(self) -> int:
        """The least side of an image: patches of one pixel at the end, and of more than one where statistics are."""
        return 1 << (self.config.layers + 2)

    def forward(self, x: Tensor | None, y: Tensor, norm_mode: str = "instance") -> Tensor:
        """x is not looked at where in_channels is 0, and may be None then. norm_mode: as for generators."""
        check_norm_mode(norm_mode)
        hidden = joined(x, y, self.config.in_channels)
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden, norm_mode), SLOPE)
        logits: Tensor = self.head(hidden)
        return logits


@dataclass(frozen=True, kw_only=True)
class PixelDiscriminatorConfig:
    """Options of :class:`PixelDiscriminator`; see :class:`PatchDiscriminatorConfig`."""

    in_channels: int = bounded(0, 64, default=3)
    out_channels: int = bounded(1, 64, default=3)
    channels: int = bounded(1, 1024, default=64)
    norm: str = one_of(*NORMS, default="batch")


class PixelDiscriminator(nn.Module):
    """Logits of single pixels, by 1x1 convolutions ("PixelGAN"): as `PatchDiscriminator`, to [B, 1, H, W]."""

    def __init__(self, config: PixelDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        bias, inputs, width = (
            config.norm == "instance",
            config.in_channels + config.out_channels,
            config.channels,
        )
        first, second = nn.Conv2d(inputs, width, 1), nn.Conv2d(width, 2 * width, 1, bias=bias)
        self.layers = nn.ModuleList([ConvNorm(first, "none"), ConvNorm(second, config.norm)])
        self.head = nn.Conv2d(2 * width, 1, 1, bias=bias)
        initialise(self)

    @property
    def least(self) -> int:
        """The least side of an image, for statistics of more than one pixel."""
        return 2

    def forward(self, x: Tensor | None, y: Tensor, norm_mode: str = "instance") -> Tensor:
        """As :meth:`PatchDiscriminator.forward`."""
        check_norm_mode(norm_mode)
        hidden = joined(x, y, self.config.in_channels)
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden, norm_mode), SLOPE)
        logits: Tensor = self.head(hidden)
        return logits


def joined(x: Tensor | None, y: Tensor, in_channels: int) -> Tensor:
    """What a discriminator sees: [x, y], or y alone where in_channels is 0."""
    if not in_channels:
        return y
    if x is None:
        raise TypeError(f"this discriminator sees x of {in_channels} channels beside y, and x is None")
    return torch.cat([x, y], dim=1)
