"""Image files as people have them, read for an engine and written again: upright, with alpha, EXIF and profile."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError, DataError
from .files import open_ordinary, write_atomic
from .images import FORMATS, check_side, to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile as Opened

# Decided by content, not by name: Pillow would hand a PostScript file in disguise to another program. Pillow's JPEG
# opener also reads MPO, the format of cameras that keep several JPEG images in a file; the first one counts.
READ = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = {*(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")}
WRITTEN = {**FORMATS, ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}  # by suffix
WITHOUT_ALPHA = ("JPEG", "BMP")
MODES = (
    *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"),
)  # Pillow's names; 8 bits or fewer
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")  # 16 bits of grey
MAX_PIXELS = 1 << 26  # of one image, unless the caller says otherwise
MAX_DPI = 1 << 16  # of what is kept: files say anything
MAX_EXIF = {"JPEG": 65_000}  # bytes
QUALITY = 95  # of JPEG and WebP: above it files grow and nothing is seen

_bomb_limit = Lock()  # Pillow's own limit is one for the whole process


@dataclass(frozen=True)
class ImageFile:
    """An image as it was read, upright.

    pixels: [C, H, W], C = 1 (grey) or 3 (RGB), uint8, or float32 in [0, 255] of a file with 16 bits per pixel.
    alpha: uint8 [H, W], None where nothing is transparent; colours under it are the file's own. kept: what is written
    again with a result, as far as its format has a place for it (BMP has none for EXIF): Pillow's "exif" (without the
    orientation), "icc_profile", "dpi".
    """

    path: Path
    pixels: Tensor
    alpha: Tensor | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    def tensor(self) -> Tensor:
        """float32 [C, H, W] in [-1, 1], as engines take it."""
        return self.pixels.float().div_(127.5).sub_(1)


def read_image_file(path: str | Path, channels: int = 3, *, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """Read an image as grey (channels 1) or RGB (3).

    Any mode of 8 bits or fewer, CMYK and palettes too, and 16 bits of grey. Raises DataError for what is no image, is
    damaged, has several frames or pages, more than `max_pixels`, or values without a white (floats, 32 bits).
    """
    from PIL import ImageOps

    path = Path(path)
    if channels not in (1, 3):
        raise ConfigError(f"expected 1 (grey) or 3 (RGB), got {channels!r}", argument="channels")
    with opened(path, READ, lambda file: _check(file, max_pixels), max_pixels) as file:
        deep = _is_deep(file)
        if file.format == "PNG" and file.mode == "L" and file.has_transparency_data:
            scale_transparent_grey(file)
        transparent = file.has_transparency_data and not deep
        file.load()
        try:
            upright: Image = ImageOps.exif_transpose(file)
        except (
            Exception
        ) as error:  # of a damaged entry, whose orientation nobody knows; the pixels may be sound
            warnings.warn(f"{path}: its EXIF entries are damaged and left out ({error})", stacklevel=2)
            upright = file.copy()
            upright.info.pop("exif", None)
        kept = {name: upright.info[name] for name in ("exif", "dpi") if upright.info.get(name)}
        if not all(math.isfinite(value) and 0 < value < MAX_DPI for value in kept.get("dpi", ())):
            del kept["dpi"]
        grey = deep or upright.mode in ("1", "L", "LA")
        # A profile tells what the numbers of a colour space mean: it goes with them where they stay.
        stays = upright.mode in (("L", "LA") if channels == 1 else ("RGB", "RGBA", "P"))
        if stays and upright.info.get("icc_profile"):
            kept["icc_profile"] = upright.info["icc_profile"]
        if deep:
            values = np.asarray(upright, dtype=np.float32) / np.float32(257)
            pixels = torch.from_numpy(values)[None].clamp_(0, 255)
            return ImageFile(path, pixels.expand(channels, -1, -1).contiguous(), None, kept)
        alpha = None
        if transparent:
            upright = upright.convert("LA" if grey else "RGBA")
            alpha = torch.from_numpy(np.array(upright.getchannel("A")))
        drawn = np.array(upright.convert("L" if channels == 1 else "RGB"))
    pixels = torch.from_numpy(drawn.reshape(*drawn.shape[:2], channels)).permute(2, 0, 1).contiguous()
    return ImageFile(path, pixels, None if alpha is None or bool((alpha == 255).all()) else alpha, kept)


def write_image_file(image: Tensor, path: str | Path, like: ImageFile | None = None) -> None:
    """Write an image, float [C, H, W] in [-1, 1] or uint8, in the format of `path`'s suffix; whole, or not at all.

    like: the file that it was made of, whose alpha, resized where the sizes differ, EXIF, profile and resolution it
    gets; formats without alpha show it over white. Raises ConfigError for a suffix that is none of WRITTEN, WriteError.
    """
    from PIL import Image

    path = Path(path)
    kind = written_format(path)
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ConfigError(f"expected a tensor [1 or 3, H, W], got {got}", argument="image")
    check_side((image.shape[2], image.shape[1]), kind, path)
    whole = image.dtype == torch.uint8
    values = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy() if whole else to_uint8(image[None])[0])
    made = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    extra = dict(like.kept) if like is not None else {}
    if like is not None and like.pixels.shape[0] != image.shape[0]:
        extra.pop("icc_profile", None)
    if like is not None and like.alpha is not None:
        alpha = Image.fromarray(like.alpha.numpy())
        if alpha.size != made.size:
            alpha = alpha.resize(made.size, Image.Resampling.BICUBIC)
        if kind in WITHOUT_ALPHA:
            made = Image.composite(made, Image.new(made.mode, made.size, "white"), alpha)
        else:
            made.putalpha(alpha)
    if kind in ("JPEG", "WEBP"):
        extra["quality"] = QUALITY
    taken = {name: value for name, value in extra.items() if name in _TAKEN.get(kind, ())}
    if len(taken.get("exif", b"")) > MAX_EXIF.get(kind, 1 << 30):
        warnings.warn(f"{path}: a {kind} has no room for the EXIF entries, which are left out", stacklevel=2)
        del taken["exif"]
    data = io.BytesIO()
    try:
        made.save(data, kind, **taken)
    except Exception as error:  # Pillow's writers raise any type of error for what a format cannot hold
        raise ConfigError(f"cannot be written as {kind}: {error}", argument=path) from error
    write_atomic(path, data.getvalue())


_TAKEN = {  # of what is kept, and the quality: what a format's writer has a place for
    "PNG": ("exif", "icc_profile", "dpi"),
    "JPEG": ("exif", "icc_profile", "dpi", "quality"),
    "WEBP": ("exif", "icc_profile", "quality"),
    "TIFF": ("exif", "icc_profile", "dpi"),
    "BMP": ("dpi",),
}


def written_format(path: Path) -> str:
    """Pillow's name of the format that `path`'s suffix means. Raises ConfigError."""
    kind = WRITTEN.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"expected a name that ends in {', '.join(WRITTEN)}", argument=path)
    return kind


@contextmanager
def opened(
    path: Path, formats: tuple[str, ...], check: Callable[[Opened], None], max_pixels: int = MAX_PIXELS
) -> Iterator[Opened]:
    """`path` as one of `formats`, not decoded yet; `check` looks at its header and raises DataError.

    What decoding it raises in the block becomes a DataError, too. max_pixels: more than Pillow's own limit lifts that.
    """
    from PIL import Image

    try:
        with (
            open_ordinary(path, DataError) as data,
            _lifted(max_pixels),
            Image.open(data, formats=formats) as file,
        ):
            check(file)
            yield file
    except DataError as error:
        if error.argument is not None:
            raise
        raise DataError(error.reason, argument=path) from error
    except Exception as error:  # Pillow's decoders fail in any way there is on a damaged file
        raise DataError(f"cannot be read as an image: {_shortly(error, path)}", argument=path) from error


def check_mode(file: Opened) -> None:
    """Whether the values of an image have a black and a white. Raises DataError without an argument."""
    if file.mode.startswith("I"):
        raise DataError("has 16 or 32 bits per pixel; convert it to 8 bits first")
    if file.mode == "F":
        raise DataError(
            "has floating-point values, and no word of which is black and which white; scale it to 0..255 "
            "and convert it to 8 bits first"
        )
    if file.mode not in MODES:
        raise DataError(f"has the mode {file.mode}; convert it to grey or RGB of 8 bits first")
    if "16" in raw_mode(file) and "transparency" in file.info:
        raise DataError(
            "names a transparent colour of 16 bits per channel; convert it to 8 bits (RGBA) first"
        )


def check_pixels(file: Opened, most: int) -> None:
    """Whether an image has at most `most` pixels. Raises DataError without an argument."""
    if math.prod(file.size) > most:
        raise DataError(f"{file.width} x {file.height} are more than {most} pixels; scale it down")


def raw_mode(file: Opened) -> str:
    """How the values of a PNG lie in the file, such as "L;4"; of other formats nothing."""
    return str(file.tile[0][3]) if file.format == "PNG" and file.tile else ""


def scale_transparent_grey(file: Opened) -> None:
    """Pillow scales the values of a grey PNG of 2 or 4 bits to 8, but not the value that is the transparent one."""
    levels = {"L;2": 3, "L;4": 15}.get(raw_mode(file))
    value = file.info.get("transparency")
    if levels is not None and isinstance(value, int):
        file.info["transparency"] = value * 255 // levels


def _check(file: Opened, max_pixels: int) -> None:
    check_pixels(file, max_pixels)
    if (frames := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":
        raise DataError(f"has {frames} frames or pages; take the one you mean out of it first")
    if not _is_deep(file):
        check_mode(file)


def _is_deep(file: Opened) -> bool:
    """Whether it has 16 bits of grey, 65535 being white."""
    return file.mode in DEEP or (file.mode == "I" and file.format in ("PNG", "PPM"))


@contextmanager
def _lifted(max_pixels: int) -> Iterator[None]:
    """Within the block Pillow opens images of `max_pixels`, beyond its own limit where that is lower."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS  # it warns from there on, and refuses twice as many
    if limit is None or max_pixels <= limit:
        yield
        return
    with _bomb_limit:
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _shortly(error: Exception, path: Path) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its message names a file object
        return f"it is none of {', '.join(READ)}"
    return str(error) or type(error).__name__
