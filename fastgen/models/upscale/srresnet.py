"""SRResNet, the generator of SRGAN (Ledig et al. 2017, figure 4)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from ...config import bounded, one_of, validate
from ...errors import ConfigError
from .upscaler import SCALES, STEPS, UpBlock, Upscaler, reach


@dataclass(frozen=True)
class SRResNetConfig:
    """Options of :class:`SRResNet`.

    scale: 1, 2, 3, 4 or 8. num_features: channels between the layers. num_blocks: residual blocks (the paper has 16).
    outer_kernel: side of the first and the last convolution's filters, odd. norm: batch norm behind the convolutions
    within blocks, or none. norm_eps: its epsilon. prelu: one slope for all channels ("shared") or one for each.
    body_end: what follows the convolution behind the blocks: "norm", or "prelu" as in leftthomas' released weights.
    output: "linear", or "tanh" for (tanh(x) + 1) / 2.
    """

    scale: int = bounded(1, 8, default=4)
    in_channels: int = bounded(1, 16, default=3)
    out_channels: int = bounded(1, 16, default=3)
    num_features: int = bounded(1, 1024, default=64)
    num_blocks: int = bounded(1, 256, default=16)
    outer_kernel: int = bounded(1, 31, default=9)
    norm: str = one_of("batch", "none", default="batch")
    norm_eps: float = bounded(0.0, 1.0, default=1e-5)
    prelu: str = one_of("shared", "channel", default="shared")
    body_end: str = one_of("norm", "prelu", default="norm")
    output: str = one_of("linear", "tanh", default="linear")

    def __post_init__(self) -> None:
        validate(self, "srresnet")
        if self.scale not in SCALES:
            raise ConfigError(f"expected one of {SCALES}, got {self.scale}", argument="srresnet: scale")
        if self.outer_kernel % 2 == 0:
            raise ConfigError(
                f"expected an odd number, got {self.outer_kernel}", argument="srresnet: outer_kernel"
            )


class ResidualBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x))))): [B, C, H, W] -> the same."""

    def __init__(self, config: SRResNetConfig) -> None:
        super().__init__()
        channels = config.num_features
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = _norm(config)
        self.act = _prelu(config)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = _norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class SRResNet(Upscaler):
    """Residual blocks at the low resolution, pixel shuffles behind them; see :class:`Upscaler`."""

    def __init__(self, config: SRResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, outer = config.num_features, config.outer_kernel
        self.scale, self.in_channels, self.out_channels = (
            config.scale,
            config.in_channels,
            config.out_channels,
        )
        self.conv_in = nn.Conv2d(config.in_channels, channels, outer, padding=outer // 2)
        self.act_in = _prelu(config)
        self.blocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.num_blocks))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.end_body = _prelu(config) if config.body_end == "prelu" else _norm(config)
        self.ups = nn.ModuleList(UpBlock(channels, factor, _prelu(config)) for factor in STEPS[config.scale])
        self.conv_out = nn.Conv2d(channels, config.out_channels, outer, padding=outer // 2)

        kernels = [(outer, Fraction(1)), *[(3, Fraction(1))] * (2 * config.num_blocks + 1)]
        pitch = Fraction(1)
        for factor in STEPS[config.scale]:
            kernels.append((3, pitch))
            pitch /= factor
        self.radius = reach([*kernels, (outer, pitch)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.act_in(self.conv_in(x))
        x = first
        for block in self.blocks:
            x = block(x)
        x = first + self.end_body(self.conv_body(x))
        for up in self.ups:
            x = up(x)
        x = self.conv_out(x)
        return (torch.tanh(x) + 1) / 2 if self.config.output == "tanh" else x


def _norm(config: SRResNetConfig) -> nn.Module:
    if config.norm == "none":
        return nn.Identity()
    return nn.BatchNorm2d(config.num_features, eps=config.norm_eps)


def _prelu(config: SRResNetConfig) -> nn.PReLU:
    return nn.PReLU(config.num_features if config.prelu == "channel" else 1)
