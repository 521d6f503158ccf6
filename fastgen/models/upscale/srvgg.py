"""Compact SRVGG (Real-ESRGAN's SRVGGNetCompact): convolutions in a row, and one pixel shuffle at the end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ...config import bounded, one_of, validate
from ...errors import ConfigError
from .upscaler import Upscaler, reach

SLOPE = 0.1  # of LeakyReLU


@dataclass(frozen=True)
class SRVGGConfig:
    """Options of :class:`SRVGG`.

    scale: any whole factor. num_features: channels. num_convs: convolutions between the first and the last. act:
    prelu (a slope for each channel), leaky_relu (0.1) or relu.
    """

    scale: int = bounded(1, 8, default=4)
    in_channels: int = bounded(1, 16, default=3)
    out_channels: int = bounded(1, 16, default=3)
    num_features: int = bounded(1, 1024, default=64)
    num_convs: int = bounded(0, 256, default=16)
    act: str = one_of("prelu", "leaky_relu", "relu", default="prelu")

    def __post_init__(self) -> None:
        validate(self, "srvgg")
        if self.in_channels != self.out_channels:
            raise ConfigError(
                f"the enlarged input is added to the result: expected {self.in_channels}, got {self.out_channels}",
                argument="srvgg: out_channels",
            )


class SRVGG(Upscaler):
    """Everything at the low resolution; the input, enlarged by nearest neighbour, is added. See :class:`Upscaler`."""

    def __init__(self, config: SRVGGConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.num_features
        self.scale, self.in_channels, self.out_channels = (
            config.scale,
            config.in_channels,
            config.out_channels,
        )
        self.body = nn.Sequential(nn.Conv2d(config.in_channels, channels, 3, padding=1), _act(config))
        for _ in range(config.num_convs):
            self.body.append(nn.Conv2d(channels, channels, 3, padding=1)).append(_act(config))
        self.conv_out = nn.Conv2d(channels, config.out_channels * config.scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.scale)
        self.radius = reach([(3, 1)] * (config.num_convs + 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.conv_out(self.body(x)))
        return y + F.interpolate(x, scale_factor=float(self.scale), mode="nearest")


def _act(config: SRVGGConfig) -> nn.Module:
    if config.act == "prelu":
        return nn.PReLU(config.num_features)
    return nn.LeakyReLU(SLOPE) if config.act == "leaky_relu" else nn.ReLU()
