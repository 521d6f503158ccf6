"""Large images in tiles that overlap by a quarter, blended over it linearly, as diffusers' AutoencoderKL does it.

A tile sees nothing beyond its edges, neither by convolutions nor by norms and attention, so that the result is another
image than that of the whole; `compare` says how far.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...config import shown
from ...errors import ConfigError
from ...models.vae.vae import Normal
from ..arguments import as_index

if TYPE_CHECKING:
    from .engine import VAEEngine

OVERLAP = 0.25  # of a tile's side


@dataclass(frozen=True)
class TilingReport:
    """Images in [-1, 1] decoded in tiles beside those decoded whole. peak: the greatest deviation of a value; rms: root
    mean square; psnr: in dB of the range 2, infinite where nothing differs.
    """

    tile: int
    peak: float
    rms: float

    @property
    def psnr(self) -> float:
        return math.inf if self.rms == 0 else 20 * math.log10(2 / self.rms)

    def __str__(self) -> str:
        return (
            f"tiles of {self.tile}: off by {self.rms:.4f} (rms), {self.peak:.4f} (peak), {self.psnr:.1f} dB"
        )


def compare(tiled: Tensor, whole: Tensor, tile: int) -> TilingReport:
    """Of two images of one shape."""
    off = (tiled - whole).double()
    return TilingReport(tile, float(off.abs().max()), float(off.square().mean().sqrt()))


def tiled_decode(engine: VAEEngine, z: Tensor, tile: int) -> Tensor:
    """Images of latents z, decoded in tiles of `tile` pixels."""
    small = _checked(engine, tile)
    return _blended(z, small, tile, lambda tiles: engine.call("decode", tiles)[0])


def tiled_encode(engine: VAEEngine, x: Tensor, tile: int) -> Normal:
    """q(z | x) of images x, encoded in tiles of `tile` pixels; means and log-variances are blended."""
    small = _checked(engine, tile)
    found = _blended(x, tile, small, lambda tiles: torch.cat(engine.call("encode", tiles), dim=1))
    return Normal(*found.chunk(2, dim=1))


def _checked(engine: VAEEngine, tile: Any) -> int:
    """The side of a tile's latents. Raises ConfigError."""
    multiple = engine.vae.multiple
    if multiple is None:
        raise ConfigError("this VAE takes images of one size only, as a whole", argument="tile")
    side = as_index(tile)
    least = multiple * round(1 / OVERLAP)  # that an overlap has a pixel of latents
    if type(side) is not int or side < least or side % multiple:
        raise ConfigError(
            f"expected a multiple of {multiple}, at least {least}, got {shown(tile)}", argument="tile"
        )
    return side // multiple


def _blended(x: Tensor, side: int, result: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run` of the tiles of x [n, C, H, W] with sides of `side` pixels, whose results have `result`, put together."""
    step, extent = int(side * (1 - OVERLAP)), int(result * OVERLAP)
    kept = result - extent
    if x.shape[2] <= side and x.shape[3] <= side:
        return run(x)
    rows = [
        [run(x[:, :, i : i + side, j : j + side].contiguous()) for j in range(0, x.shape[3], step)]
        for i in range(0, x.shape[2], step)
    ]
    lines = []
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            if i > 0:
                _blend(rows[i - 1][j], tile, extent, 2)
            if j > 0:
                _blend(row[j - 1], tile, extent, 3)
        lines.append(torch.cat([tile[:, :, :kept, :kept] for tile in row], dim=3))
    return torch.cat(lines, dim=2)


def _blend(before: Tensor, tile: Tensor, extent: int, dim: int) -> None:
    """The first pixels of `tile` along `dim` go over from the last ones of the tile before it, in place."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    shape = [1, 1, 1, 1]
    shape[dim] = extent
    weight = (torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent).view(shape)
    first = tile.narrow(dim, 0, extent)
    last = before.narrow(dim, before.shape[dim] - extent, extent)
    first.copy_(last * (1 - weight) + first * weight)
