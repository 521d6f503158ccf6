"""Large pictures through a network tile by tile, each with so much of its neighbours that the result is that of the
whole.

Networks mirror a picture at its borders. A tile that is extended by as much as the network looks beyond a pixel is
mirrored at its own borders, too, but what that changes is cut off again; at the picture's borders nothing is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Span:
    """Part of a side, in steps: `start` to before `stop`, and the same with what is added of its neighbours."""

    start: int
    stop: int
    outer_start: int
    outer_stop: int

    @property
    def inner(self) -> slice:
        """The part within what is added."""
        return slice(self.start - self.outer_start, self.stop - self.outer_start)


def spans(length: int, most: int, halo: int) -> Iterator[Span]:
    """A side of `length` steps in equal parts of at most `most`, each with `halo` steps more on both sides."""
    count = -(-length // most)
    each = -(-length // count)
    for start in range(0, length, each):
        stop = min(start + each, length)
        yield Span(start, stop, max(start - halo, 0), min(stop + halo, length))


class Tiles:
    """Tiles of a picture of some size: `shrink` makes features of it, `enlarge` a picture of features.

    height, width: of the picture. tile: pixels of a tile's side, at most. stride: pixels of the picture for a pixel of
    features. reach: how many pixels a network looks beyond one.
    """

    def __init__(self, height: int, width: int, tile: int, stride: int, reach: int) -> None:
        self.height, self.width, self.stride = height, width, stride
        most, halo = max(tile // stride, 1), -(-reach // stride)
        self.size = -(-height // stride), -(-width // stride)  # of the features
        self.rows, self.columns = (list(spans(side, most, halo)) for side in self.size)

    def _each(self) -> Iterator[tuple[Span, Span]]:
        return ((row, column) for row in self.rows for column in self.columns)

    def shrink(self, function: Function, picture: Tensor) -> Tensor:
        """function(picture) [1, C, h, w] of a picture [1, 3, H, W]."""
        made: Tensor | None = None
        stride = self.stride
        for row, column in self._each():
            part = function(
                picture[
                    :,
                    :,
                    row.outer_start * stride : row.outer_stop * stride,
                    column.outer_start * stride : column.outer_stop * stride,
                ]
            )
            if made is None:
                made = part.new_empty(1, part.shape[1], *self.size).to(memory_format=torch.channels_last)
            made[:, :, row.start : row.stop, column.start : column.stop] = part[:, :, row.inner, column.inner]
        assert made is not None
        return made

    def enlarge(self, function: Function, features: Tensor) -> Tensor:
        """function(features), cut to [1, 3, H, W], of features [1, C, h, w]."""
        made: Tensor | None = None
        stride = self.stride
        for row, column in self._each():
            part = function(
                features[:, :, row.outer_start : row.outer_stop, column.outer_start : column.outer_stop]
            )
            if made is None:
                made = part.new_empty(1, part.shape[1], self.height, self.width)
            top, left = row.start * stride, column.start * stride
            target = made[:, :, top : row.stop * stride, left : column.stop * stride]
            height, width = target.shape[2:]
            y, x = row.inner.start * stride, column.inner.start * stride
            target.copy_(part[:, :, y : y + height, x : x + width])
        assert made is not None
        return made
