"""MSRResNet: SRResNet without batch norm, as BasicSR has it (Wang et al. 2018, ESRGAN's baseline)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional as F

from ...config import bounded, validate
from ...errors import ConfigError
from .upscaler import STEPS, UpBlock, Upscaler, reach, small_weights

SCALES = (2, 3, 4)
SLOPE = 0.1  # of LeakyReLU


@dataclass(frozen=True)
class MSRResNetConfig:
    """Options of :class:`MSRResNet`. scale: 2, 3 or 4. num_features: channels. num_blocks: residual blocks."""

    scale: int = bounded(2, 4, default=4)
    in_channels: int = bounded(1, 16, default=3)
    out_channels: int = bounded(1, 16, default=3)
    num_features: int = bounded(1, 1024, default=64)
    num_blocks: int = bounded(1, 256, default=16)

    def __post_init__(self) -> None:
        validate(self, "msrresnet")
        if self.in_channels != self.out_channels:
            raise ConfigError(
                f"the enlarged input is added to the result: expected {self.in_channels}, got {self.out_channels}",
                argument="msrresnet: out_channels",
            )


class PlainResidualBlock(nn.Module):
    """x + conv(relu(conv(x))): [B, C, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        small_weights(self.modules())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class MSRResNet(Upscaler):
    """Residual blocks, pixel shuffles; the input, enlarged bilinearly, is added. See :class:`Upscaler`."""

    def __init__(self, config: MSRResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.num_features
        self.scale, self.in_channels, self.out_channels = (
            config.scale,
            config.in_channels,
            config.out_channels,
        )
        self.conv_in = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(PlainResidualBlock(channels) for _ in range(config.num_blocks))
        self.ups = nn.ModuleList(
            UpBlock(channels, factor, nn.LeakyReLU(SLOPE)) for factor in STEPS[config.scale]
        )
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        small_weights(
            [self.conv_in, *(up.get_submodule("conv") for up in self.ups), self.conv_hr, self.conv_out]
        )

        pitch, kernels = Fraction(1), [(3, Fraction(1))] * (2 * config.num_blocks + 1)
        for factor in STEPS[config.scale]:
            kernels.append((3, pitch))
            pitch /= factor
        self.radius = reach([*kernels, (3, pitch), (3, pitch)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv_in(x), SLOPE)
        for block in self.blocks:
            y = block(y)
        for up in self.ups:
            y = up(y)
        y = self.conv_out(F.leaky_relu(self.conv_hr(y), SLOPE))
        return y + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
