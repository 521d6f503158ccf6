"""How far images are from those that they should be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import shown
from ..errors import ConfigError

# ITU-R BT.601 of 8-bit RGB, as MATLAB's rgb2ycbcr has it: luma from 16 to 235. Papers on super-resolution compare it.
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
LUMA_BLACK = 16.0


def l1(image: Tensor, truth: Tensor) -> float:
    """Mean absolute error, of values in [0, 1]. image, truth: [C, H, W] in [0, 255], of one shape."""
    return float((image.double() - truth.double()).abs().mean() / 255)


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / mean squared error); infinite for equal images."""
    error = float((image.double() - truth.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def luma(image: Tensor) -> Tensor:
    """float64 [1, H, W], 16 to 235, of RGB [3, H, W] in [0, 255]."""
    red, green, blue = image.double()
    return (LUMA_BLACK + LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[None]


def cropped(image: Tensor, border: int) -> Tensor:
    """`image` [C, H, W] without `border` pixels at each side. Raises ConfigError where nothing is left."""
    height, width = image.shape[1:]
    if 2 * border >= min(height, width):
        raise ConfigError(f"leaves nothing of {height}x{width}, got {shown(border)}", argument="crop")
    return image[:, border : height - border, border : width - border]


def mean_finite(values: list[float]) -> float:
    """The mean; infinite where one of them is."""
    return float(torch.tensor(values, dtype=torch.float64, device="cpu").mean())
