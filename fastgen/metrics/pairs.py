"""How far images are from those that they should be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import shown
from ..errors import ConfigError

# ITU-R BT.601 of 8-bit RGB, as MATLAB's rgb2ycbcr has it: luma from 16 to 235. Papers on super-resolution compare it.
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
LUMA_BLACK = 16.0


def l1(image: Tensor, truth: Tensor) -> float:
    """Mean absolute error, of values in [0, 1]. image, truth: [C, H, W] in [0, 255]. Raises ConfigError for unequal
    shapes.
    """
    _check_shapes(image, truth)
    return float((image.double() - truth.double()).abs().mean() / 255)


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / mean squared error); infinite for equal images.

    image, truth: [C, H, W] in [0, 255]. Raises ConfigError for unequal shapes.
    """
    _check_shapes(image, truth)
    error = float((image.double() - truth.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def luma(image: Tensor) -> Tensor:
    """float64 [1, H, W], 16 to 235, of RGB [3, H, W] in [0, 255]. Raises ConfigError."""
    if image.ndim != 3 or len(image) != 3:
        raise ConfigError(f"expected RGB [3, H, W], got {list(image.shape)}", argument="image")
    red, green, blue = image.double()
    return (LUMA_BLACK + LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[None]


def cropped(image: Tensor, border: int) -> Tensor:
    """`image` [C, H, W] without `border` pixels, 0 or more, at each side. Raises ConfigError where nothing is left."""
    if type(border) is not int or border < 0:
        raise ConfigError(f"expected a whole number from 0, got {shown(border)}", argument="crop")
    height, width = image.shape[1:]
    if 2 * border >= min(height, width):
        raise ConfigError(f"leaves nothing of {height}x{width}, got {shown(border)}", argument="crop")
    return image[:, border : height - border, border : width - border]


def over_white(image: Tensor, alpha: Tensor | None) -> Tensor:
    """`image` [C, H, W] in [0, 255] as it looks on white paper, of its type; alpha: uint8 [H, W], None for opaque."""
    if alpha is None:
        return image
    share = alpha.double() / 255
    made = image.double() * share + 255 * (1 - share)
    return (made if image.is_floating_point() else made.round()).to(image.dtype)


def warn_of_transparency(transparent: Sequence[Path]) -> None:
    """One warning that these files have transparency, where there are any."""
    if transparent:
        more = f" and {len(transparent) - 1} more" if len(transparent) > 1 else ""
        warnings.warn(f"{transparent[0]}{more}: what is transparent counts as white", stacklevel=3)


def mean(values: list[float]) -> float:
    """The mean; infinite where one of them is."""
    return float(torch.tensor(values, dtype=torch.float64, device="cpu").mean())


def _check_shapes(image: Tensor, truth: Tensor) -> None:
    if image.shape != truth.shape:
        raise ConfigError(
            f"expected two images of one shape, got {list(image.shape)} and {list(truth.shape)}",
            argument="truth",
        )
