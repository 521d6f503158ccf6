"""Halving and doubling the resolution: strided convolution, nearest neighbour, pooling, and FIR filters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Downsample(nn.Module):
    """Strided 3x3 convolution: [B, C, H, W] -> [B, C, H / 2, W / 2], H and W even.

    padding 1 pads all sides, 0 only the right and the bottom, by one pixel.
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution: [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class NearestUp(nn.Module):
    """Nearest neighbour x2: [B, C, H, W] -> [B, C, 2H, 2W]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class MeanDown(nn.Module):
    """Mean of 2x2 pixels: [B, C, H, W] -> [B, C, H / 2, W / 2]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class FirDown(nn.Module):
    """Low-pass filter [1, 3, 3, 1] / 8 along both axes, then every second pixel (Zhang 2019): H -> H / 2.

    edges: "constant" continues the image with zeros, "reflect" mirrors it.
    """

    def __init__(self, edges: str = "constant") -> None:
        super().__init__()
        self.edges = edges

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(F.pad(x, (1, 1, 1, 1), self.edges), _taps(x, 8.0), stride=2, groups=channels)


class FirUp(nn.Module):
    """A zero between any two pixels, then the filter [1, 3, 3, 1] / 4 along both axes: H -> 2H.

    edges: as for :class:`FirDown`.
    """

    def __init__(self, edges: str = "constant") -> None:
        super().__init__()
        self.edges = edges

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), self.edges)
        return F.conv_transpose2d(padded, _taps(x, 4.0), stride=2, padding=3, groups=x.shape[1])


def _taps(x: Tensor, divisor: float) -> Tensor:
    """[1, 3, 3, 1] x [1, 3, 3, 1] / divisor^2 for every channel of `x`: [C, 1, 4, 4].

    Made on the device, with nothing copied from the host: a captured step may contain it.
    """
    line = (4.0 - 2.0 * (torch.arange(4, device=x.device, dtype=x.dtype) - 1.5).abs()) / divisor
    return torch.outer(line, line).expand(x.shape[1], 1, 4, 4)
