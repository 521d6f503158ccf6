"""MicroAST: style transfer by two small encoders, a modulator and a small decoder (Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...config import bounded
from .network import AdaIN, Signals, StyleNetwork, convolution

__all__ = ["MicroAST", "MicroASTConfig"]


@dataclass(frozen=True)
class MicroASTConfig:
    """Options of :class:`MicroAST`; the defaults are those of EndyWon/MicroAST.

    channels: of the picture's full size; twice as many at half, four times as many at a quarter of it. eps: added to
    variances.
    """

    channels: int = bounded(1, 512, default=16)
    eps: float = bounded(1e-12, 1.0, default=1e-5)


class MicroAST(StyleNetwork):
    """Two of the style's features, at a quarter of the size, modulate the content's features and the filters.

    A style's code is, for each of the two: the mean and deviation of its channels, and a factor and a share of the
    input for the filters, "weight" and "bias" of the modulator.

    `alpha` is that of the authors' code, and their weights (which were trained with 1) make no pictures with less: the
    content's features as they are have other means and deviations than any style's, which alone the decoder has seen. A
    mean of the style's code and the content's own makes a weaker style.
    """

    stride, minimum, one_encoder = 4, 5, False
    # Of the encoder: 9x9 (4), two strided 3x3 (1, 2), two residual blocks of two 3x3 at a quarter of the size (16). The
    # decoder needs less: 13.
    reach = 23

    def __init__(self, config: MicroASTConfig) -> None:
        super().__init__()
        self.config, fine = config, config.channels
        coarse = 4 * fine
        self.content_encoder, self.style_encoder = Encoder(fine), Encoder(fine)
        self.modulator = Modulator(coarse)
        self.residual = nn.ModuleList([Residual(coarse), Residual(coarse)])
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            convolution(coarse, 2 * fine, 3, groups=2 * fine),
            nn.ReLU(),
            convolution(2 * fine, 2 * fine, 1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            convolution(2 * fine, fine, 3, groups=fine),
            nn.ReLU(),
            convolution(fine, fine, 1),
            nn.ReLU(),
            convolution(fine, 3, 9),
        )
        self.adain = AdaIN(config.eps)
        self.width = coarse
        self.code_size = 8 * coarse

    def features(self, content: Tensor) -> Tensor:
        """See ``StyleNetwork``."""
        return self.content_encoder.last(self.content_encoder.first(content))

    def style_features(self, style: Tensor) -> Tensor:
        """See ``StyleNetwork``."""
        return self.style_encoder.first(style)

    def code(self, style_features: Tensor) -> Tensor:
        """See ``StyleNetwork``: of the first and of the second features mean, deviation, weight, bias."""
        parts = []
        for i, x in enumerate((style_features, self.style_encoder.last(style_features))):
            parts += [self.adain.statistics(x), *self.modulator(x, i)]
        return torch.cat(parts, dim=1)

    def modulate(self, features: Tensor, signals: Signals, alpha: float = 1.0) -> Tensor:
        """See ``StyleNetwork``. The second features' style comes first."""
        for block, start in zip(self.residual, (4, 0), strict=True):
            mean, std, weight, bias = (
                signals.rows((start + i) * self.width, (start + i + 1) * self.width) for i in range(4)
            )
            features = block(self.adain(features, mean, std, alpha), weight, bias)
        return features

    def decode(self, features: Tensor) -> Tensor:
        """See ``StyleNetwork``."""
        return self.decoder(features)


class Residual(nn.Module):
    """x + conv(ReLU(conv(x))), the filters of both convolutions modulated where a style is given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels, 3)
        self.relu = nn.ReLU()
        self.conv2 = convolution(channels, channels, 3)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """weight, bias: [B, C, 1, 1] or [B, C, h, w], or none: filters times `weight`, plus `bias` of the input."""
        if weight is None or bias is None:
            return x + self.conv2(self.relu(self.conv1(x)))
        inner = self.relu(weight * self.conv1(x) + bias * x)
        return x + (weight * self.conv2(inner) + bias * inner)


class Encoder(nn.Module):
    """A picture [B, 3, H, W] to features at a quarter of its size, `first`, and to more of them, `last`."""

    def __init__(self, fine: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            convolution(3, fine, 9),
            nn.ReLU(),
            convolution(fine, 2 * fine, 3, stride=2, groups=fine),
            nn.ReLU(),
            convolution(2 * fine, 2 * fine, 1),
            nn.ReLU(),
            convolution(2 * fine, 4 * fine, 3, stride=2, groups=2 * fine),
            nn.ReLU(),
            convolution(4 * fine, 4 * fine, 1),
            nn.ReLU(),
            Residual(4 * fine),
        )
        self.last = Residual(4 * fine)


class Modulator(nn.Module):
    """A factor of filters and a share of their input from each of two features of a style."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.ModuleList(convolution(channels, channels, 3, groups=channels) for _ in range(2))
        self.biases = nn.ModuleList(convolution(channels, channels, 3, groups=channels) for _ in range(2))

    def forward(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """(weight, bias), [B, C] each, of the features [B, C, h, w] with number `index`."""
        return self.weights[index](x).mean((2, 3)), self.biases[index](x).mean((2, 3))
