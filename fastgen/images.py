"""Tensors to images: single files, sheets, animations, and the request that made them in a PNG's metadata."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .config import MAX_NAME, parse_json, shown
from .errors import ConfigError, DataError
from .files import open_ordinary, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

Range = tuple[float, float]
PICTURES: Range = (-1.0, 1.0)  # the values of an image, from black to white
METADATA_KEY = "fastgen"
OUTPUT_TYPES = ("pt", "np", "pil")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}  # pixels; PNG has no such bound
MAX_SHEET = 1 << 27  # pixels: readers refuse larger images as decompression bombs
MAX_FRAMES = 1 << 28  # pixels of an animation, all of whose frames are held at once
MAX_MILLISECONDS = 655_350  # GIF counts hundredths of a second in 16 bits
GAP = 2  # pixels between the cells of a sheet
BACKGROUND = 32  # grey level between the cells of a sheet


def to_uint8(images: Tensor) -> np.ndarray:
    """float [n, C, H, W] in [-1, 1] -> uint8 [n, H, W, C]; values outside are clipped.

    What is NaN or infinite becomes 0, and a warning says in which images.
    """
    _check(images)
    finite = images.isfinite()
    failed = [i for i, whole in enumerate(finite.flatten(1).all(1).tolist()) if not whole]
    if failed:
        which = ", ".join(map(str, failed[:20])) + (", ..." if len(failed) > 20 else "")
        warnings.warn(
            f"{len(failed)} of {len(images)} images have values that are NaN or infinite and drawn black: {which}",
            stacklevel=2,
        )
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return torch.where(finite, scaled, 0).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Tensor) -> list[Image]:
    """float [n, C, H, W] in [-1, 1], C = 1 or 3 -> n images."""
    from PIL import Image

    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in to_uint8(images)]


def within(values: Tensor, value_range: Range | None) -> Tensor:
    """Clamp `values` to a range, in place; None leaves them alone. An infinite one becomes NaN: it is no colour."""
    if value_range is None:
        return values
    failed = ~values.isfinite()
    return values.clamp_(*value_range).masked_fill_(failed, math.nan)


def to_pictures(values: Tensor, value_range: Range | None) -> Tensor:
    """What `values` in a range are as images in [-1, 1]; None: they are taken as they are."""
    if value_range in (None, PICTURES):
        return values
    low, high = value_range
    return (values - low) * (2 / (high - low)) - 1


def to_output(images: Tensor | None, output_type: str, value_range: Range | None = PICTURES) -> Any:
    """`images`, whose values lie in `value_range`, as an engine's caller wants them: "pt", "np" or "pil".

    For "np" and "pil" None means [-1, 1], and values outside are clipped. ``None`` for `images` only checks the name.
    Raises ConfigError.
    """
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(
            f"expected one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}", argument="output_type"
        )
    if images is None or output_type == "pt":
        return images
    images = to_pictures(images, value_range)
    if output_type == "pil":
        return to_pil(images)
    return images.add(1).div(2).clamp_(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def grid(
    images: Tensor, *, columns: int | None = None, captions: Sequence[str] | None = None, scale: int = 1
) -> Image:
    """A sheet of `images` [n, C, H, W] in [-1, 1], row by row.

    columns: by default about as many as rows. captions: a line under each image, cut where it is too long. scale:
    whole factor by which each image is enlarged (nearest neighbour). Raises ConfigError, also for a sheet of more
    than `MAX_SHEET` pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    _check(images)
    n, _, *shape = images.shape
    if captions is not None and (len(captions) != n or not all(isinstance(c, str) for c in captions)):
        raise ConfigError(f"expected one string per image ({n}), got {shown(captions)}", argument="captions")
    size = sheet_size(n, (shape[0], shape[1]), columns=columns, captions=captions is not None, scale=scale)
    drawn = to_pil(images)
    columns = _columns(n, columns)
    width, height = drawn[0].width * scale, drawn[0].height * scale
    gap, text_height = GAP, _text_height(height)
    line = text_height + 3 if captions is not None else 0
    sheet = Image.new(drawn[0].mode, size, BACKGROUND if drawn[0].mode == "L" else (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(text_height)
    fitting: dict[str, str] = {}  # captions repeat: each is shortened once
    white = 255 if sheet.mode == "L" else (255, 255, 255)
    for i, cell in enumerate(drawn):
        x = gap + i % columns * (width + gap)
        y = gap + i // columns * (height + line + gap)
        sheet.paste(cell.resize((width, height), Image.Resampling.NEAREST), (x, y))
        if captions is not None:
            if captions[i] not in fitting:
                fitting[captions[i]] = _cut(captions[i], lambda text: draw.textlength(text, font) <= width)
            draw.text((x + width / 2, y + height), fitting[captions[i]], fill=white, font=font, anchor="ma")
    return sheet


def sheet_size(
    n: int, shape: tuple[int, int], *, columns: int | None = None, captions: bool = False, scale: int = 1
) -> tuple[int, int]:
    """(width, height) of :func:`grid`'s sheet of `n` images of `shape` (height, width). Raises ConfigError."""
    if columns is not None:
        _whole("columns", columns, 1)
    _whole("scale", scale, 1)
    across = _columns(n, columns)
    height = shape[0] * scale
    line = _text_height(height) + 3 if captions else 0
    size = across * (shape[1] * scale + GAP) + GAP, -(-n // across) * (height + line + GAP) + GAP
    if math.prod(size) > MAX_SHEET:
        raise ConfigError(
            f"a sheet of {size[0]} x {size[1]} is more than {MAX_SHEET} pixels; enlarge less, "
            "or write fewer images per sheet, or single files",
            argument="scale",
        )
    return size


def check_side(size: tuple[int, int], kind: str, path: Path) -> None:
    """Whether an image of `size` (width, height) can be a file of `kind`, Pillow's name. Raises ConfigError."""
    if max(size) > MAX_SIDE.get(kind, max(size)):
        raise ConfigError(
            f"a {kind} has at most {MAX_SIDE[kind]} pixels a side, this would have {size[0]} x {size[1]}; "
            "enlarge less (scale), or choose other columns, or .png",
            argument=path,
        )


def check_frames(count: int, size: tuple[int, int], path: Path) -> None:
    """Whether an animation of `count` sheets of `size` can be written. Raises ConfigError."""
    check_side(size, "GIF", path)
    if count * math.prod(size) > MAX_FRAMES:
        raise ConfigError(
            f"{count} frames of {size[0]} x {size[1]} are more than {MAX_FRAMES} pixels; enlarge less (scale), "
            "or animate fewer images",
            argument=path,
        )


def _columns(n: int, columns: int | None) -> int:
    return min(columns or math.ceil(math.sqrt(n)), n)


def _text_height(height: int) -> int:
    return max(10, min(16, height // 5))


def _cut(text: str, fits: Callable[[str], bool]) -> str:
    """The beginning of `text`, on one line, that `fits`."""
    text = "".join(c if c.isprintable() else " " for c in text[:MAX_NAME])
    if fits(text):
        return text
    return next((cut for end in range(len(text), 0, -1) if fits(cut := text[:end] + "…")), "")


def _whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        raise ConfigError(f"expected a whole number from {low}{upper}, got {shown(value)}", argument=name)


def save_grid(
    images: Tensor,
    path: str | Path,
    *,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    scale: int = 1,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a sheet of `images` [n, C, H, W] in [-1, 1]; the suffix of `path` says the format (PNG, JPEG, WebP).

    Arguments as for :func:`grid`; `metadata` (JSON types) is kept in a PNG. A file there is replaced atomically.
    Raises WriteError where that fails, and leaves it as it was.
    """
    _save(grid(images, columns=columns, captions=captions, scale=scale), Path(path), metadata)


def save_image(image: Tensor, path: str | Path, *, metadata: dict[str, Any] | None = None) -> None:
    """Write one image, float [C, H, W] in [-1, 1]; formats and `metadata` as for :func:`save_grid`."""
    if not isinstance(image, Tensor) or image.ndim != 3:
        got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ConfigError(
            f"expected a tensor [C, H, W], got {got}; save_grid takes several", argument="image"
        )
    _save(to_pil(image[None])[0], Path(path), metadata)


def save_gif(
    frames: Iterable[Tensor],
    path: str | Path,
    *,
    columns: int | None = None,
    scale: int = 1,
    milliseconds: int = 80,
    hold: int = 1500,
) -> None:
    """Write an animation; each frame is a sheet of [n, C, H, W] in [-1, 1], the last shown for `hold` ms.

    Raises ConfigError, also for a name that does not end in .gif, and WriteError.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ConfigError("expected a name that ends in .gif", argument=path)
    _whole("milliseconds", milliseconds, 0, MAX_MILLISECONDS)
    _whole("hold", hold, 0, MAX_MILLISECONDS)
    sheets: list[Image] = []
    for frame in frames:
        sheets.append(grid(frame, columns=columns, scale=scale))
        check_frames(len(sheets), sheets[0].size, path)
    if not sheets:
        raise ConfigError("expected at least one", argument="frames")
    data = io.BytesIO()
    durations = [milliseconds] * (len(sheets) - 1) + [hold]
    sheets[0].save(data, "GIF", save_all=True, append_images=sheets[1:], duration=durations, loop=0)
    write_atomic(path, data.getvalue())


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The request kept in a PNG that fastgen wrote. Raises DataError where there is none."""
    from PIL import Image

    try:
        # `info` is what lies before the pixels, which are not decoded: their claimed size is not trusted.
        with open_ordinary(path, DataError) as file, Image.open(file, formats=["PNG"]) as file_image:
            text = file_image.info.get(METADATA_KEY)
    except DataError:
        raise
    except Exception as error:  # Pillow raises any type of error for a damaged file
        raise DataError(f"cannot be read as an image: {error}", argument=path) from error
    if text is None:
        raise DataError(
            "holds no fastgen request (PNG files of `fastgen sample` do, and of save_grid with metadata=)",
            argument=path,
        )
    try:
        values = parse_json(text, "its fastgen request")
    except ConfigError as error:
        raise DataError(f"its fastgen request is damaged: {error}", argument=path) from error
    if not isinstance(values, dict):
        raise DataError("its fastgen request is damaged: no object", argument=path)
    return values


def _save(image: Image, path: Path, metadata: dict[str, Any] | None) -> None:
    from PIL.PngImagePlugin import PngInfo

    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"expected a name that ends in {', '.join(FORMATS)}", argument=path)
    check_side(image.size, kind, path)
    extra: dict[str, Any] = {}
    if kind == "PNG":
        info = PngInfo()
        if metadata is not None:
            try:
                text = json.dumps(metadata, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ConfigError(f"not to be written as JSON: {error}", argument="metadata") from error
            info.add_text(METADATA_KEY, text)
        extra["pnginfo"] = info
    data = io.BytesIO()
    image.save(data, kind, **extra)
    write_atomic(path, data.getvalue())


def _check(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ConfigError(
            f"expected a float tensor [n, 1 or 3, H, W], got {type(images).__name__}", argument="images"
        )
    if (
        images.ndim != 4
        or images.shape[1] not in (1, 3)
        or not images.is_floating_point()
        or not images.numel()
    ):
        raise ConfigError(
            f"expected a float tensor [n, 1 or 3, H, W], got {images.dtype} {list(images.shape)}",
            argument="images",
        )
