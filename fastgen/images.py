"""Tensors to pictures: single files, sheets, animations, and the request that made them in a PNG's metadata."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .config import parse_json
from .errors import ConfigError, DataError
from .files import open_ordinary, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

METADATA_KEY = "fastgen"
OUTPUT_TYPES = ("pt", "np", "pil")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
BACKGROUND = 32  # grey level between the cells of a sheet


def to_uint8(images: Tensor) -> np.ndarray:
    """float [n, C, H, W] in [-1, 1] -> uint8 [n, H, W, C]; values outside are clipped, NaN becomes 0."""
    _check(images)
    scaled = images.detach().float().nan_to_num(nan=-1.0).add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Tensor) -> list[Image]:
    """float [n, C, H, W] in [-1, 1], C = 1 or 3 -> n pictures."""
    from PIL import Image

    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in to_uint8(images)]


def to_output(images: Tensor | None, output_type: str) -> Any:
    """`images` as an engine's caller wants them; ``None`` only checks the name. Raises ConfigError."""
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"output_type: expected one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    if images is None or output_type == "pt":
        return images
    if output_type == "pil":
        return to_pil(images)
    return images.add(1).div(2).permute(0, 2, 3, 1).cpu().numpy()


def grid(
    images: Tensor, *, columns: int | None = None, captions: Sequence[str] | None = None, scale: int = 1
) -> Image:
    """A sheet of `images` [n, C, H, W] in [-1, 1], row by row.

    columns: by default about as many as rows. captions: a line under each picture. scale: whole factor by which
    each picture is enlarged (nearest neighbour).
    """
    from PIL import Image, ImageDraw, ImageFont

    pictures = to_pil(images)
    if captions is not None and len(captions) != len(pictures):
        raise ConfigError(f"captions: expected one a picture ({len(pictures)}), got {len(captions)}")
    if (columns is not None and columns < 1) or scale < 1:
        raise ConfigError(f"columns and scale must be at least 1, got {columns} and {scale}")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].width * scale, pictures[0].height * scale
    gap = 2
    text_height = max(10, min(16, height // 5))
    line = text_height + 3 if captions is not None else 0
    size = (columns * (width + gap) + gap, rows * (height + line + gap) + gap)
    sheet = Image.new(pictures[0].mode, size, BACKGROUND if pictures[0].mode == "L" else (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(text_height)
    white = 255 if sheet.mode == "L" else (255, 255, 255)
    for i, picture in enumerate(pictures):
        x = gap + i % columns * (width + gap)
        y = gap + i // columns * (height + line + gap)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
        if captions is not None:
            draw.text((x + width / 2, y + height), captions[i], fill=white, font=font, anchor="ma")
    return sheet


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
    """Write one picture, float [C, H, W] in [-1, 1]; formats and `metadata` as for :func:`save_grid`."""
    if image.ndim != 3:
        raise ConfigError(f"image: expected [C, H, W], got {list(image.shape)}; save_grid takes several")
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
    """Write an animation; each frame is a sheet of [n, C, H, W] in [-1, 1], the last shown for `hold` ms."""
    sheets = [grid(frame, columns=columns, scale=scale) for frame in frames]
    if not sheets:
        raise ConfigError("frames: expected at least one")
    data = io.BytesIO()
    durations = [milliseconds] * (len(sheets) - 1) + [hold]
    sheets[0].save(data, "GIF", save_all=True, append_images=sheets[1:], duration=durations, loop=0)
    write_atomic(path, data.getvalue())


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The request kept in a PNG that fastgen wrote. Raises DataError where there is none."""
    from PIL import Image

    try:
        # `info` is what lies before the pixels, which are not decoded: their size is anybody's claim.
        with open_ordinary(path, DataError) as file, Image.open(file, formats=["PNG"]) as picture:
            text = picture.info.get(METADATA_KEY)
    except DataError:
        raise
    except Exception as error:  # Pillow fails in any way there is on a damaged file
        raise DataError(f"{path}: cannot be read as a picture: {error}") from error
    if text is None:
        raise DataError(
            f"{path}: holds no fastgen request (PNG files of `fastgen sample` do, and of save_grid with metadata=)"
        )
    try:
        values = parse_json(text, "its fastgen request")
    except ConfigError as error:
        raise DataError(f"{path}: its fastgen request is damaged: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: its fastgen request is damaged: no object")
    return values


def _save(picture: Image, path: Path, metadata: dict[str, Any] | None) -> None:
    from PIL.PngImagePlugin import PngInfo

    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    extra: dict[str, Any] = {}
    if kind == "PNG":
        info = PngInfo()
        if metadata is not None:
            info.add_text(METADATA_KEY, json.dumps(metadata))
        extra["pnginfo"] = info
    data = io.BytesIO()
    picture.save(data, kind, **extra)
    write_atomic(path, data.getvalue())


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point() or not len(images):
        raise ConfigError(
            f"images: expected a float tensor [n, 1 or 3, H, W], got {images.dtype} {list(images.shape)}"
        )
