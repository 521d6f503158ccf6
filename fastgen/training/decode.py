"""An image file to 8-bit grey or RGB: which formats and modes are read, what lies under transparent pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..config import shown
from ..errors import DataError
from ..image_files import check_mode, check_pixels, opened, scale_transparent_grey

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 1 << 26  # of one image: eight of them are decoded at a time, into 4 bytes per pixel or more
BACKGROUND = "white"

Colour = tuple[int, int, int]


def read_image(path: Path, channels: int, background: Colour) -> Image:
    """Decode `path`, upright, as grey (1 channel) or RGB (3), composited over `background`. Raises DataError."""
    from PIL import Image, ImageOps

    with opened(path, IMAGE_FORMATS, _check) as file:
        if not file.has_transparency_data:
            return ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
        if file.format == "PNG" and file.mode == "L":
            scale_transparent_grey(file)
        whole = ImageOps.exif_transpose(file).convert("RGBA")
        under = Image.new("RGBA", whole.size, (*background, 255))
        return Image.alpha_composite(under, whole).convert("L" if channels == 1 else "RGB")


def check_header(path: Path) -> bool:
    """Whether `path`, which is not decoded, says that it has transparency.

    Raises DataError for what :func:`read_image` would refuse, as far as the file's header tells.
    """
    with opened(path, IMAGE_FORMATS, _check) as file:
        return file.has_transparency_data


def pixels(image: Image, path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 [C, H, W] of `shape`: `image` resized and centre-cropped; `path` is named in errors. Raises DataError."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    try:
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    except Exception as error:  # an image without area, for one
        raise DataError(f"cannot be resized: {error}", argument=path) from error
    values = np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def colour(name: str | None) -> Colour:
    """A colour as CSS names it, "white" or "#ff8000", as red, green and blue, 0 to 255. Raises DataError."""
    from PIL import ImageColor

    try:
        found = ImageColor.getrgb(BACKGROUND if name is None else name)
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"expected a colour such as white, black or #ff8000, got {shown(name)}", argument="background"
        ) from error
    if len(found) != 3:
        raise DataError(f"expected a colour without transparency, got {name}", argument="background")
    return found


def _check(file: ImageFile) -> None:
    check_pixels(file, MAX_PIXELS)
    check_mode(file)
