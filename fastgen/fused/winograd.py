"""3x3 convolutions of large float32 images on a CPU with a quarter of the products, as matrix products.

Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray 2016, section 4): 6x6 pixels of input, which overlap by two, give
4x4 of output,

    Y = A^T [sum_c (G g_c G^T) * (B^T d_c B)] A

with 36 products a channel where 144 are counted else. With the usual points 0, +-1, +-2 results are off by about ten
times of what a plain convolution rounds; with 0, +-3/4, +-3/2 (and powers of two moved from B to G) by about five
times, some 1e-6 of the largest value.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity
OUT, IN = 4, 6  # pixels of a tile's side, after and before
# From where on the transforms cost less than they save: channels on both sides, their products, and tiles of an image.
# At 64x64 pixels, where others use the machine's caches, too: 0.85 to 1.2 times with 64 -> 64 channels, 1.3 to 1.7 with
# 64 -> 256 and 192 -> 64.
CHANNELS, PRODUCTS, TILES = 64, 64 * 128, 16
# Elements of transformed tiles that are worked on at a time, which stay in a core's own cache of 1 MB (four times as
# many take up to 1.7 times as long); and tiles, at least, so that matrices have enough rows.
PART, ENOUGH = 1 << 17, 32
KEPT = 1 << 24  # elements of a tensor that is kept for the next call


def fits(conv: nn.Conv2d) -> bool:
    """Whether `conv` is a convolution that `Winograd` can do, and wide enough to gain by it."""
    return (
        conv.weight.dtype == torch.float32
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= CHANNELS
        and conv.in_channels * conv.out_channels >= PRODUCTS
    )


def gains(x: Tensor, any_size: bool = False) -> bool:
    """Whether images [B, C, H, W] divide into enough tiles; it is the same for every batch.

    any_size: also where what is added at two sides, to divide them, has to be cut off again.
    """
    height, width = x.shape[2:]
    divides = min(height, width) > OUT if any_size else height % OUT == 0 == width % OUT
    return divides and height * width >= TILES * OUT * OUT


class Winograd:
    """A convolution's filters, transformed once, and the convolution by them."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: str = "zeros") -> None:
        """weight: float32 [O, C, 3, 3]. bias: [O]. padding: by which one pixel goes around images, as of Conv2d."""
        a, g, b = matrices()
        filters = torch.einsum("ij,ocjk,lk->ilco", g, weight.detach().double(), g)
        self.filters = filters.flatten(0, 1).to(weight.dtype).contiguous()
        self.bias, self.padding = None if bias is None else bias.detach(), padding
        self.before, self.after = (torch.kron(m, m).to(weight.dtype) for m in (b, a))

    def magnitudes(self) -> Winograd:
        """The same of absolute values, which makes of |x| what the sums of products cannot exceed on their way."""
        made = Winograd.__new__(Winograd)
        made.filters, made.before, made.after = self.filters.abs(), self.before.abs(), self.after.abs()
        made.bias, made.padding = None if self.bias is None else self.bias.abs(), self.padding
        return made

    def __call__(self, x: Tensor, act: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """x: [B, C, H, W], of any size that ``gains``. Returns [B, O, H, W], channels-last.

        act: an activation of [..., O], which may work in place; it sees what lies in the cache.
        """
        batch, channels, height, width = x.shape
        down, along, made = -(-height // OUT), -(-width // OUT), self.filters.shape[2]
        padded = self._padded(x, OUT * down, OUT * along)
        y = x.new_empty(batch, OUT * down, OUT * along, made)
        rows = max(PART // (IN * IN * along * max(channels, made)), -(-ENOUGH // along))
        samples, rows = max(rows // down, 1), min(rows, down)
        for sample in range(0, batch, samples):
            for row in range(0, down, rows):
                some = padded[sample : sample + samples, OUT * row :]
                target = y[sample : sample + samples, OUT * row : OUT * (row + rows)]
                self._part(some, target.unflatten(2, (along, OUT)).unflatten(1, (-1, OUT)), act)
        whole = y.permute(0, 3, 1, 2)[:, :, :height, :width]
        return whole.contiguous(memory_format=torch.channels_last)  # copied only where something was cut off

    def _padded(self, x: Tensor, height: int, width: int) -> Tensor:
        """[B, height + 2, width + 2, C]: a border of one pixel, and what is cut off again."""
        if self.padding == "zeros":
            return _bordered(x.permute(0, 2, 3, 1), height, width)
        border = 1, 1 + width - x.shape[3], 1, 1 + height - x.shape[2]
        return F.pad(x, border, mode=self.padding).permute(0, 2, 3, 1).contiguous()

    def _part(self, padded: Tensor, y: Tensor, act: Callable[[Tensor], Tensor] | None) -> None:
        """padded: [B, 4 rows + 2 or more, 4 columns + 2, C]; y: [B, rows, 4, columns, 4, O], to be written."""
        batch, rows, _, columns, _, made = y.shape
        channels = padded.shape[3]
        whole, down, along, each = padded.stride()
        tiles = padded.as_strided(
            (IN, IN, batch, rows, columns, channels), (down, along, whole, OUT * down, OUT * along, each)
        )
        count = batch * rows * columns
        given = _scratch("tiles", padded, IN * IN, count * channels)
        given.view(tiles.shape).copy_(tiles)
        before = torch.mm(self.before, given, out=_scratch("before", padded, IN * IN, count * channels))
        products = torch.bmm(
            before.view(IN * IN, count, channels),
            self.filters,
            out=_scratch("products", padded, IN * IN, count, made),
        )
        after = torch.mm(
            self.after,
            products.view(IN * IN, -1),
            out=_scratch("after", padded, OUT * OUT, count * made),
        ).view(OUT, OUT, batch, rows, columns, made)
        target = y.permute(2, 4, 0, 1, 3, 5)
        if act is not None:
            target.copy_(act(after if self.bias is None else after.add_(self.bias)))
        elif self.bias is None:
            target.copy_(after)
        else:
            torch.add(after, self.bias, out=target)


def _bordered(x: Tensor, height: int, width: int) -> Tensor:
    """x [B, H, W, C] at (1, 1) of [B, height + 2, width + 2, C], else zeros; `F.pad` would fill everything first."""
    batch, rows, columns, channels = x.shape
    padded = _scratch("padded", x, batch, height + 2, width + 2, channels)
    padded[:, 1 : rows + 1, 1 : columns + 1] = x
    borders = (padded[:, 0], padded[:, rows + 1 :], padded[:, :, 0], padded[:, :, columns + 1 :])
    for side in borders:
        side.zero_()
    return padded


class _Held(threading.local):
    """A thread's tensors for results in between, by name, as large as they were ever asked for."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, torch.dtype], Tensor] = {}


_held = _Held()


def _scratch(name: str, like: Tensor, *shape: int) -> Tensor:
    """A tensor whose values nobody needs any more; made anew each time it would cost a seventh of a convolution's time,
    in which the system clears its pages."""
    key, size = (name, like.dtype), math.prod(shape)
    kept = _held.values.get(key)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):  # it outlives the caller's mode
            kept = torch.empty(size, dtype=like.dtype, device="cpu")
        if size <= KEPT:
            _held.values[key] = kept
    return kept[:size].view(shape)


@functools.cache
def matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A^T [4, 6], G [6, 3] and B^T [6, 6] of the points, float64 (Barabasz et al. 2020, section 2).

    Rows of B are polynomials that are 0 at all points but one; G holds powers of the points over the products of their
    differences, A the powers. Powers of two, which are exact, bring the rows of B to a sum near 1.
    """
    double: Any = {"dtype": torch.float64, "device": "cpu"}
    points = torch.tensor(POINTS, **double)
    a, g, b = (
        torch.zeros(OUT, IN, **double),
        torch.zeros(IN, IN - OUT + 1, **double),
        torch.zeros(IN, IN, **double),
    )
    a[:, :-1] = points ** torch.arange(OUT, **double)[:, None]
    a[-1, -1] = g[-1, -1] = 1.0
    for i in range(IN):
        others = torch.cat([points[:i], points[i + 1 :]])  # all of them in the last row
        row = torch.ones(1, **double)
        for point in others:
            row = F.pad(row, (1, 0)) - point * F.pad(row, (0, 1))
        b[i, : len(row)] = row
        if i < IN - 1:
            g[i] = points[i] ** torch.arange(IN - OUT + 1, **double) / (points[i] - others).prod()
    scale = torch.exp2(b.abs().sum(1, keepdim=True).log2().round())
    return a, g * scale, b / scale
