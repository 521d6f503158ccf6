"""What every super-resolution network says of itself, and the blocks that several of them are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import torch
from torch import Tensor, nn

STEPS = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # factors of the blocks that enlarge, by scale
SCALES = tuple(STEPS)


class Upscaler(nn.Module):
    """A network that enlarges images: [B, C, H, W] in [0, 1] -> [B, C', scale H, scale W], about [0, 1], not clamped.

    scale: factor of both sides. in_channels, out_channels: of the images. multiple: what H and W must be divisible by.
    radius: the receptive field, in pixels of the input to each side: no pixel of the result depends on one that is
    further away. It holds for windows whose origin is a multiple of `multiple`.
    """

    scale: int
    in_channels: int
    out_channels: int
    multiple: int = 1
    radius: int


class UpBlock(nn.Module):
    """3x3 convolution to factor^2 times the channels, pixel shuffle (Shi et al. 2016), activation.

    x: [B, C, H, W] -> [B, C, factor H, factor W].
    """

    def __init__(self, channels: int, factor: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shuffle(self.conv(x)))


def reach(kernels: Iterable[tuple[int, Fraction | int]]) -> int:
    """The receptive field's radius, of (kernel size, pixels of the network's input per pixel there) in a row."""
    return math.ceil(sum(Fraction(size // 2) * pitch for size, pitch in kernels))


def small_weights(modules: Iterable[nn.Module], factor: float = 0.1) -> None:
    """Kaiming's normal initialisation times `factor`, biases 0: what deep residual networks start from (ESRGAN)."""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(factor)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
