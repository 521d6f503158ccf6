"""RRDBNet: residual blocks of densely connected ones, the generator of ESRGAN (Wang et al. 2018) and Real-ESRGAN."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import bounded, validate
from ...errors import ConfigError
from ..resample import Upsample
from .upscaler import Upscaler, reach, small_weights

UNSHUFFLED = {
    1: 4,
    2: 2,
    4: 1,
}  # by scale: pixels of a side that become channels before the first convolution
SLOPE = 0.2  # of LeakyReLU
RESIDUAL = 0.2  # factor of what a block adds
DENSE = 5  # convolutions of a dense block


@dataclass(frozen=True)
class RRDBNetConfig:
    """Options of :class:`RRDBNet`.

    scale: 1, 2 or 4; below 4 the image is first made smaller by a pixel unshuffle (Wang et al. 2021, section 3.3).
    num_features: channels. num_blocks: of three dense blocks each. growth: channels that each convolution adds.
    """

    scale: int = bounded(1, 4, default=4)
    in_channels: int = bounded(1, 16, default=3)
    out_channels: int = bounded(1, 16, default=3)
    num_features: int = bounded(1, 1024, default=64)
    num_blocks: int = bounded(1, 256, default=23)
    growth: int = bounded(1, 512, default=32)

    def __post_init__(self) -> None:
        validate(self, "rrdbnet")
        if self.scale not in UNSHUFFLED:
            raise ConfigError(f"expected 1, 2 or 4, got {self.scale}", argument="rrdbnet: scale")


class DenseBlock(nn.Module):
    """x + 0.2 times five convolutions, each of which sees x and all results before it: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + k * growth, channels if k == DENSE - 1 else growth, 3, padding=1)
            for k in range(DENSE)
        )
        small_weights(self.convs)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), SLOPE)], dim=1)
        return self.convs[-1](seen) * RESIDUAL + x


class RRDB(nn.Module):
    """x + 0.2 times three dense blocks: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList(DenseBlock(channels, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.dense:
            y = block(y)
        return y * RESIDUAL + x


class RRDBNet(Upscaler):
    """RRDB blocks, then twice nearest neighbour and a convolution. See :class:`Upscaler`."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.num_features
        self.scale, self.in_channels, self.out_channels = (
            config.scale,
            config.in_channels,
            config.out_channels,
        )
        self.multiple = UNSHUFFLED[config.scale]
        self.conv_in = nn.Conv2d(config.in_channels * self.multiple**2, channels, 3, padding=1)
        self.blocks = nn.ModuleList(RRDB(channels, config.growth) for _ in range(config.num_blocks))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.up1, self.up2 = Upsample(channels), Upsample(channels)
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

        pitch = Fraction(self.multiple)  # unshuffled pixels are squares of the input's
        low = [(3, pitch)] * (3 * DENSE * config.num_blocks + 2)
        high = [(3, pitch / 2), (3, pitch / 4), (3, pitch / 4), (3, pitch / 4)]
        # Of a square the pixel that is looked at may be the first, and what it sees the last.
        self.radius = reach([*low, *high]) + self.multiple - 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.multiple) if self.multiple > 1 else x)
        y = x
        for block in self.blocks:
            y = block(y)
        x = x + self.conv_body(y)
        x = F.leaky_relu(self.up2(F.leaky_relu(self.up1(x), SLOPE)), SLOPE)
        return self.conv_out(F.leaky_relu(self.conv_hr(x), SLOPE))
