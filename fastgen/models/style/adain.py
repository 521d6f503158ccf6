"""Style transfer in real time with adaptive instance normalisation (Huang & Belongie 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ...config import bounded
from ...errors import ConfigError
from .network import AdaIN, Signals, StyleNetwork, convolution

__all__ = ["AdaINTransfer", "AdaINTransferConfig"]


@dataclass(frozen=True)
class AdaINTransferConfig:
    """Options of :class:`AdaINTransfer`; the defaults are the paper's, VGG-19 up to relu4_1.

    channels: of the encoder's levels, the finest first. depths: convolutions of each level but the last, which has one.
    eps: added to variances.
    """

    channels: tuple[int, ...] = bounded(1, 4096, default=(64, 128, 256, 512), max_items=6)
    depths: tuple[int, ...] = bounded(1, 16, default=(2, 2, 4), max_items=5)
    eps: float = bounded(1e-12, 1.0, default=1e-5)

    def __post_init__(self) -> None:
        if len(self.channels) < 2:
            raise ConfigError("expected two levels at least", argument="channels")
        if len(self.depths) != len(self.channels) - 1:
            raise ConfigError(
                f"expected one of each level but the last ({len(self.channels) - 1}), got {len(self.depths)}",
                argument="depths",
            )


class AdaINTransfer(StyleNetwork):
    """VGG's features of the content get the mean and deviation of the style's, and a mirrored decoder draws them.

    The encoder is naoto0804/pytorch-AdaIN's "normalised" VGG-19: a 1x1 convolution of the colours, borders mirrored,
    pooling that keeps the last row of an odd height. Its `levels` end behind relu1_1, relu2_1, ...: what the losses of
    the training compare. A style's code is the mean and then the deviation of each channel of the last one.
    """

    one_encoder = True

    def __init__(self, config: AdaINTransferConfig) -> None:
        super().__init__()
        self.config = config
        channels, depths = config.channels, config.depths
        self.encoder = Encoder(channels, depths)
        self.decoder = nn.Sequential(*_decoder(channels, depths))
        self.adain = AdaIN(config.eps)
        self.stride = 2 ** len(depths)
        self.minimum = self.stride + 1  # two pixels of the coarsest level, to be mirrored
        # A 3x3 convolution of a level with pixels of 2^i looks 2^i further.
        self.reach = sum(2**i * depth for i, depth in enumerate(depths)) + self.stride
        self.code_size = 2 * channels[-1]

    def features(self, content: Tensor) -> Tensor:
        """See ``StyleNetwork``."""
        return self.encoder(content)

    def style_features(self, style: Tensor) -> Tensor:
        """See ``StyleNetwork``."""
        return self.encoder(style)

    def code(self, style_features: Tensor) -> Tensor:
        """See ``StyleNetwork``."""
        return self.adain.statistics(style_features)

    def modulate(self, features: Tensor, signals: Signals, alpha: float = 1.0) -> Tensor:
        """See ``StyleNetwork``."""
        half = self.code_size // 2
        mean, std = signals.rows(0, half), signals.rows(half, 2 * half)
        return self.adain(features, mean, std, alpha)

    def decode(self, features: Tensor) -> Tensor:
        """See ``StyleNetwork``."""
        return self.decoder(features)


class Encoder(nn.Module):
    """[B, 3, H, W] in [0, 1] to the features of the last level."""

    def __init__(self, channels: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1)
        levels = [nn.Sequential(convolution(3, channels[0], 3), nn.ReLU())]
        for i, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for _ in range(depth - 1):
                blocks += [convolution(channels[i], channels[i], 3), nn.ReLU()]
            blocks += [nn.MaxPool2d(2, ceil_mode=True), convolution(channels[i], channels[i + 1], 3)]
            levels.append(nn.Sequential(*blocks, nn.ReLU()))
        self.levels = nn.ModuleList(levels)

    def each(self, x: Tensor) -> Iterator[Tensor]:
        """The features of every level, the finest first."""
        x = self.colours(x)
        for level in self.levels:
            x = level(x)
            yield x

    def forward(self, x: Tensor) -> Tensor:
        for features in self.each(x):
            x = features
        return x


def _decoder(channels: tuple[int, ...], depths: tuple[int, ...]) -> Iterator[nn.Module]:
    """The encoder backwards, with nearest neighbours in place of pooling."""
    for i in reversed(range(len(depths))):
        yield from (convolution(channels[i + 1], channels[i], 3), nn.ReLU())
        yield nn.UpsamplingNearest2d(scale_factor=2)
        for _ in range(depths[i] - 1):
            yield from (convolution(channels[i], channels[i], 3), nn.ReLU())
    yield convolution(channels[0], 3, 3)
