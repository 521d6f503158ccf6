"""Tiles: windows of an image that the network sees one by one, all of one size, and what of each result is kept.

A window reaches beyond what is kept of it by a halo on every side but the image's own edges, where the network pads as
it does for the whole image. With a halo of the network's receptive field the parts are those of the whole result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...config import shown
from ...errors import ConfigError
from ..arguments import as_index

HALO = 32  # pixels of the input, where the receptive field is too large
SHARE = 4  # an exact halo is at most a quarter of a tile, unless the caller asks for it
# Pixels of the result on a side of a window, by device: what 64 channels of it take fits in 1 GB and in 4 GB.
WINDOW = {"cpu": 1024, "cuda": 2048}
STEP = 4  # pixels that windows are rounded up to: `Winograd` filters images of whole 4x4 tiles
MAX_TILE = 1 << 16


@dataclass(frozen=True)
class Tiling:
    """How images are divided. tile: pixels of the input on a side that are kept of a window; None: one window.

    halo: pixels around them, to be looked at. exact: whether that is the receptive field.
    """

    tile: int | None
    halo: int
    exact: bool


@dataclass(frozen=True)
class Span:
    """Along one axis: a window's first pixel, and the first and the last but one of what is kept."""

    start: int
    begin: int
    end: int


@dataclass(frozen=True)
class Axis:
    """One axis of an image: the length of all windows, and where they are."""

    window: int
    spans: tuple[Span, ...]


def tiling(tile: Any, overlap: Any, *, scale: int, radius: int, multiple: int, device: str) -> Tiling:
    """What the arguments of ``upscale`` mean. Raises ConfigError.

    tile: "auto", a number of pixels of the input, or None for the whole image at once. overlap: "exact", a number of
    pixels, or None: exact where that is at most a quarter of a tile, else `HALO`.
    """
    if tile is not None and tile != "auto":
        tile = as_index(tile)
        if type(tile) is not int or not 1 <= tile <= MAX_TILE:
            raise ConfigError(
                f"expected 'auto', None or a number of pixels from 1 to {MAX_TILE}, got {shown(tile)}",
                argument="tile",
            )
        tile = -(-tile // multiple) * multiple
    if overlap is not None and overlap != "exact":
        overlap = as_index(overlap)
        if type(overlap) is not int or not 1 <= overlap <= MAX_TILE:
            raise ConfigError(
                f"expected 'exact' or a number of pixels from 1 to {MAX_TILE}, got {shown(overlap)}",
                argument="tile_overlap",
            )
    exact = -(-radius // multiple) * multiple
    if tile is None:
        return Tiling(None, 0, True)
    window = max(WINDOW[device] // scale, multiple)
    if overlap is None:
        kept = window - 2 * exact if tile == "auto" else tile
        overlap = "exact" if SHARE * exact <= kept else HALO
    halo = exact if overlap == "exact" else -(-int(overlap) // multiple) * multiple
    if tile == "auto":  # a halo that the caller asks for may be larger than the window
        tile = max(window - 2 * halo, 2 * halo, multiple) // multiple * multiple
    return Tiling(tile, halo, halo >= radius)


def axis(length: int, plan: Tiling, multiple: int) -> Axis:
    """The windows along an axis of `length` pixels, which is a multiple of `multiple`.

    Windows lie evenly, at multiples of `multiple`; two neighbours overlap by twice the halo at least, and meet in the
    middle of that.
    """
    if plan.tile is None or length <= plan.tile + 2 * plan.halo:
        return Axis(length, (Span(0, 0, length),))
    whole, halo, tile = length // multiple, plan.halo // multiple, plan.tile // multiple
    count = -(-(whole - 2 * halo) // tile)
    window = -(-(whole + (count - 1) * 2 * halo) // count)
    while window < whole and window * multiple % STEP:
        window += 1
    starts = [i * (whole - window) // (count - 1) for i in range(count)]
    meets = [0, *((b + a + window) // 2 for a, b in pairwise(starts)), whole]
    spans = (
        Span(start * multiple, begin * multiple, end * multiple)
        for start, begin, end in zip(starts, meets[:-1], meets[1:], strict=True)
        if begin < end  # of tiny tiles, whose windows have grown, some have nothing left to make
    )
    return Axis(window * multiple, tuple(spans))
