"""An image file to 8-bit grey or RGB: which formats and modes are read, what lies under transparent pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..config import shown
from ..errors import DataError
from ..files import open_ordinary

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# Decided by content, not by name: Pillow would hand a PostScript file in disguise to another program. Pillow's JPEG
# opener also reads MPO, the format of cameras that keep several JPEG images in a file; the first one counts.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
)  # Pillow's names; 8 bits or fewer
MAX_PIXELS = 1 << 26  # of one image: eight of them are decoded at a time, into 4 bytes per pixel or more
BACKGROUND = "white"

Colour = tuple[int, int, int]


def read_image(path: Path, channels: int, background: Colour) -> Image:
    """Decode `path`, upright, as grey (1 channel) or RGB (3), composited over `background`. Raises DataError."""
    from PIL import Image, ImageOps

    with _opened(path) as file:
        if not file.has_transparency_data:
            return ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
        if file.format == "PNG" and file.mode == "L":
            _scale_transparent_grey(file)
        whole = ImageOps.exif_transpose(file).convert("RGBA")
        under = Image.new("RGBA", whole.size, (*background, 255))
        return Image.alpha_composite(under, whole).convert("L" if channels == 1 else "RGB")


def check_header(path: Path) -> bool:
    """Whether `path`, which is not decoded, says that it has transparency.

    Raises DataError for what :func:`read_image` would refuse, as far as the file's header tells.
    """
    with _opened(path) as file:
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


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    """`path`, with its header checked; what decoding it raises in the block becomes a DataError, too."""
    from PIL import Image

    try:
        with open_ordinary(path, DataError) as data, Image.open(data, formats=IMAGE_FORMATS) as file:
            _check(file, path)
            yield file
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders fail in any way there is on a damaged file
        raise DataError(f"cannot be read as an image: {error}", argument=path) from error


def _check(file: ImageFile, path: Path) -> None:
    if math.prod(file.size) > MAX_PIXELS:
        raise DataError(
            f"{file.width} x {file.height} are more than {MAX_PIXELS} pixels; scale it down", argument=path
        )
    if file.mode.startswith("I"):
        raise DataError("has 16 or 32 bits per pixel; convert it to 8 bits first", argument=path)
    if file.mode == "F":
        raise DataError(
            "has floating-point values, and no word of which is black and which white; scale it to 0..255 "
            "and convert it to 8 bits first",
            argument=path,
        )
    if file.mode not in MODES:
        raise DataError(f"has the mode {file.mode}; convert it to grey or RGB of 8 bits first", argument=path)
    if "16" in _raw_mode(file) and "transparency" in file.info:
        raise DataError(
            "names a transparent colour of 16 bits per channel; convert it to 8 bits (RGBA) first",
            argument=path,
        )


def _raw_mode(file: ImageFile) -> str:
    """How the values of a PNG lie in the file, such as "L;4"; of other formats nothing."""
    return str(file.tile[0][3]) if file.format == "PNG" and file.tile else ""


def _scale_transparent_grey(file: ImageFile) -> None:
    """Pillow scales the values of a grey PNG of 2 or 4 bits to 8, but not the value that is the transparent one."""
    levels = {"L;2": 3, "L;4": 15}.get(_raw_mode(file))
    value = file.info.get("transparency")
    if levels is not None and isinstance(value, int):
        file.info["transparency"] = value * 255 // levels
