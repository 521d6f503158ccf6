"""Kernels that measure what a fast U-Net at batch 1 could gain: a node that does nothing, a split-K convolution.

At batch 1 a 3x3 convolution of 16x16 pixels has too few output tiles for 132 multiprocessors. Split-K gives each
program a part of the sum over taps and channels as well; a second kernel adds the parts in a fixed order.

PDL is programmatic dependent launch (sm_90 on): a kernel's programs may be placed on the device while those of the
kernel before still run. `gdc_wait` then waits until that kernel is over and its stores can be seen;
`gdc_launch_dependents` allows the next kernel to be placed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TAPS = 9
_TAPS = tl.constexpr(TAPS)


@triton.jit
def increment_kernel(
    values,  # float32 [programs * BLOCK], in place
    PDL: tl.constexpr,  # "": none. Where the next kernel is allowed in: "late", after the load, or "early", first
    BLOCK: tl.constexpr,
):
    # Grid: (programs,). The sum counts the kernels that ran one after the other.
    if PDL == "early":
        tl.extra.cuda.gdc_launch_dependents()
    to = values + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if PDL != "":
        tl.extra.cuda.gdc_wait()
    value = tl.load(to)
    if PDL == "late":
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(to, value + 1.0)


# Neither width nor height decides how wide an access is: without this, 8x8 and 16x16 pixels would be two kernels.
@triton.jit(do_not_specialize=["height", "width", "steps"])
def conv_kernel(
    x,  # [H, W, CIN]
    weight,  # [COUT, 3, 3, CIN]
    partial,  # float32 [splits, H * W, COUT]
    height,
    width,
    cin,
    cout,
    steps,  # of a split; a step adds BK terms of the sum, which has 9 * CIN
    ONE_TAP: tl.constexpr,  # BK divides CIN
    PDL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # Grid: (tiles of BM pixels, tiles of BN channels, splits).
    m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    n = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    split = tl.program_id(2)
    k = tl.arange(0, BK)
    pixels = height * width
    terms = _TAPS * cin
    h = m // width - 1
    w = m % width - 1
    corner = (h * width + w).to(tl.int64) * cin
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # as all programs fit on the device, it costs nothing to allow it early

    acc = tl.zeros((BM, BN), tl.float32)
    for i in range(split * steps, tl.minimum((split + 1) * steps, tl.cdiv(terms, BK))):
        if ONE_TAP:
            tap = i * BK // cin
            ih = h + tap // 3
            iw = w + tap % 3
            inside = (m < pixels) & (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
            offset = (tap // 3 * width + tap % 3) * cin + (i * BK - tap * cin + k)
            known = n < cout
        else:  # several taps per step, and terms beyond the last
            tap = (i * BK + k) // cin
            ih = h + (tap // 3)[None, :]
            iw = w + (tap % 3)[None, :]
            inside = (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
            inside = inside & (m < pixels) & (tap < _TAPS)[None, :]
            offset = (tap // 3 * width + tap % 3) * cin + (i * BK + k) % cin
            known = (n < cout) & (tap < _TAPS)[:, None]
        values = tl.load(x + (corner + offset[None, :]), mask=inside, other=0.0)
        taps = tl.load(weight + (n * terms + (i * BK + k)[:, None]), mask=known, other=0.0)
        acc = tl.dot(values, taps, acc, input_precision="ieee")

    to = (split.to(tl.int64) * pixels + m) * cout + n
    tl.store(partial + to, acc, mask=(m < pixels) & (n < cout))


@triton.jit
def finish_kernel(
    partial,  # float32 [SPLITS, H * W, COUT]
    bias,  # [COUT]
    y,  # [H, W, COUT]
    count,  # H * W * COUT
    cout,
    SPLITS: tl.constexpr,  # the loads of all splits are under way together: a loop would wait for each
    SILU: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid: (tiles of BLOCK elements,).
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < count
    shift = tl.load(bias + element % cout, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros((BLOCK,), tl.float32)
    start = partial
    for _ in tl.static_range(SPLITS):
        total += tl.load(start + element, mask=mask, other=0.0)
        start += count
    total += shift
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(y + element, total.to(y.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Tile:
    """What a program computes: `pixels` x `channels` outputs, `terms` terms of their sums per step."""

    pixels: int
    channels: int
    terms: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Config:
    """A tile, and the number of programs among which each output's sum is split."""

    tile: Tile
    splits: int

    def __str__(self) -> str:
        tile = self.tile
        return f"{tile.pixels}x{tile.channels}x{tile.terms}, {self.splits} splits, {tile.num_warps} warps"


SQUARE = Tile(64, 64, 64, num_warps=4, num_stages=4)  # sm_90's instructions take 64 rows and four warps
WIDE = Tile(64, 128, 64, num_warps=4, num_stages=4)  # reads the pixels once for 128 channels
NARROW = Tile(
    64, 32, 64, num_warps=4, num_stages=4
)  # twice the tiles: half the splits, and partial sums to add
LITTLE = Tile(32, 32, 64, num_warps=4, num_stages=4)  # sm_80's instructions; a quarter of the partial sums
FLAT = Tile(16, 64, 64, num_warps=4, num_stages=4)  # 4x4 pixels: all of them in one tile
FLAT_NARROW = Tile(16, 32, 64, num_warps=2, num_stages=4)

# From so many pixels on, these tiles are worth a try, the likeliest first.
TILES = (
    (1024, (SQUARE, NARROW, WIDE)),
    (256, (SQUARE, NARROW, LITTLE)),
    (64, (NARROW, SQUARE, LITTLE)),
    (1, (FLAT_NARROW, FLAT)),
)
LEAST_PROGRAMS = 132  # an H100's and an H200's multiprocessors


def choose_splits(tile: Tile, pixels: int, cin: int, cout: int) -> int:
    """The fewest splits, each of equally many steps, that make LEAST_PROGRAMS programs; else as many as there are."""
    tiles = triton.cdiv(pixels, tile.pixels) * triton.cdiv(cout, tile.channels)
    steps = triton.cdiv(TAPS * cin, tile.terms)
    for splits in range(1, steps + 1):
        if steps % splits == 0 and tiles * splits >= LEAST_PROGRAMS:
            return splits
    return steps


def candidates(pixels: int, cin: int, cout: int) -> tuple[Config, ...]:
    """Configurations for a convolution of `pixels` pixels, the likeliest to be fast first."""
    tiles = next(tiles for least, tiles in TILES if pixels >= least)
    return tuple(Config(tile, choose_splits(tile, pixels, cin, cout)) for tile in tiles)


Launch = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]  # kernel, grid, arguments, options


class SplitConv:
    """A 3x3 convolution, stride 1, padding 1, of one image, with buffers of its own.

    Args:
        x: [1, CIN, H, W], float16 or bfloat16, channels-last. Fewer than 2^31 elements, as weight and partial sums.
        weight: [COUT, CIN, 3, 3] of x's type, channels-last.
        bias: [COUT] of x's type.
        config: how the work is divided. CIN a multiple of 16 makes accesses 16 bytes wide.
        silu: whether SiLU follows, before the result is rounded.
        pdl: whether the kernels use programmatic dependent launch; sm_90 on.
    """

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor, config: Config, silu: bool = False, pdl: bool = False
    ) -> None:
        _, cin, height, width = x.shape
        cout, tile = weight.shape[0], config.tile
        pixels, count = height * width, height * width * cout
        rows, filters = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
        if not (x.shape[0] == 1 and rows.is_contiguous() and filters.is_contiguous()):
            raise ValueError(
                f"x and weight: expected one image, channels-last, received strides {x.stride()}"
            )
        self.partial = x.new_empty(config.splits, pixels, cout, dtype=torch.float32)
        y = x.new_empty(1, height, width, cout)
        self.y = y.permute(0, 3, 1, 2)
        # 16-byte loads of partial sums either way; a few elements are spread over more multiprocessors.
        block = 512 if count >= 512 * LEAST_PROGRAMS else 128
        steps = triton.cdiv(triton.cdiv(TAPS * cin, tile.terms), config.splits)
        grid = (triton.cdiv(pixels, tile.pixels), triton.cdiv(cout, tile.channels), config.splits)
        options = {"enable_fp_fusion": True, "launch_pdl": pdl, "PDL": pdl}
        sizes = {"BM": tile.pixels, "BN": tile.channels, "BK": tile.terms, "ONE_TAP": cin % tile.terms == 0}
        conv = options | sizes | {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        finish = options | {"SPLITS": config.splits, "SILU": silu, "BLOCK": block, "num_warps": block // 128}
        self.launches: list[Launch] = [
            (conv_kernel, grid, (rows, filters, self.partial, height, width, cin, cout, steps), conv),
            (finish_kernel, (triton.cdiv(count, block),), (self.partial, bias, y, count, cout), finish),
        ]

    def __call__(self) -> Tensor:
        """y [1, COUT, H, W], channels-last, in this object's buffer."""
        with torch.cuda.device_of(self.y):
            for kernel, grid, arguments, options in self.launches:
                kernel[grid](*arguments, **options)
        return self.y


def compile_together(convolutions: Sequence[SplitConv], threads: int) -> None:
    """Compile the kernels of all `convolutions` side by side. What fails will fail again, with its words, when run."""
    with (
        ThreadPoolExecutor(threads) as executor,
        triton.AsyncCompileMode(executor, ignore_errors=True),
    ):
        for convolution in convolutions:
            for kernel, grid, arguments, options in convolution.launches:
                kernel.warmup(*arguments, grid=grid, **options)
