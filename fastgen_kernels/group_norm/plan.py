"""How an image is divided among programs: by one sample's shape, and by whether the batch fills the machine."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from ..rows import LINE

VECTOR = 16  # bytes that a thread loads at once


@dataclass(frozen=True)
class Launch:
    """What a kernel's programs may take."""

    row: int  # bytes of adjacent channels that a channels-last program aims to take of each pixel
    column: (
        int  # most bytes of x that a program holds in cache between its two passes; 0: it makes one pass only
    )
    num_warps: int  # at most
    unroll: int  # tiles in flight: a thread has this many 16-byte loads under way
    steps: int = 1  # of so many tiles; two launches split the pixels once for every so many, or part of them


# Of a tuple the first that fits is taken. 64 registers a thread leave room for 1024 threads on a multiprocessor, with
# 64 bytes each under way, where an H200 needs about 36 KiB to be kept busy. The figures are computed, not measured.

# Statistics, then a second launch that applies them: whole cache lines, four programs a multiprocessor.
TWO_LAUNCHES = Launch(row=128, column=0, num_warps=8, unroll=4)
LATENCY = (
    # The least that a 16-byte load takes, so that an image becomes many programs: a multiprocessor takes 1.2 us for
    # the exponentials and divisions of 16,384 elements, and a second launch costs about 2 us.
    Launch(row=16, column=48 << 10, num_warps=16, unroll=4),
    TWO_LAUNCHES,
)
THROUGHPUT = (
    # Up to 32x32: 64 bytes are what the memory fetches at a time; two programs of 64 KiB fit a multiprocessor's L1.
    Launch(row=64, column=64 << 10, num_warps=16, unroll=4),
    # Up to 64x64: a 32-byte sector, the least that is not waste; 132 multiprocessors' columns fit the L2.
    Launch(row=32, column=128 << 10, num_warps=16, unroll=4),
    TWO_LAUNCHES,
)
# Before THROUGHPUT where `fastgen_kernels.rows` asks for it. Four steps are 64 KiB: what a program does once, its
# moments' sums and coefficients, stays small beside them.
WIDE_ROWS = (Launch(row=LINE, column=0, num_warps=8, unroll=4, steps=4),)
MANY_PROGRAMS = 132  # an H200's multiprocessors; a throughput plan with fewer programs leaves some idle
PROGRAMS = 264  # what splitting aims at for a single sample
# Of a block's groups times their splits, which each program of the second launch reads: 32 KiB, 16 values a thread.
MAX_PARTIALS = 4096
# Bytes: rows become longer than a launch's up to here, if that makes them whole 16-byte pieces.
WIDEST_ROW = 128
# In NCHW a channel's pixels are contiguous, so that a program needs few channels: one group, cut where it has more.
PLANES = 16
MAX_PLANES = 64  # of a group that is not cut


@dataclass(frozen=True)
class Plan:
    """The work of a launch; names are the kernels' arguments."""

    one_launch: bool
    blocks: int  # of channels
    width: int  # channels of a block
    parts: int  # blocks that a group is cut into
    lanes: int
    groups: int
    rows: int
    unroll: int
    num_warps: int
    splits: int  # of the pixels
    run: int  # pixels of a split

    @property
    def partials(self) -> int:
        """Of each group, padded to a power of 2."""
        return power_of_2(self.parts * self.splits)


def power_of_2(n: int) -> int:
    """The least power of 2 that is at least n."""
    return 1 << (n - 1).bit_length()


def _groups_of_a_block(columns: int, size: int, element: int) -> int:
    """How many groups of `size` channels a row takes: what fits `columns`, and whole 16-byte pieces where it can."""
    aligned = VECTOR // math.gcd(VECTOR, size * element)
    if columns // size >= aligned:
        return columns // size // aligned * aligned
    return aligned if aligned * size * element <= WIDEST_ROW else max(columns // size, 1)


@functools.lru_cache(maxsize=4096)
def plan(
    batch: int,
    num_groups: int,
    size: int,
    pixels: int,
    element: int,
    channels_last: bool,
    wide: bool = False,
) -> Plan:
    """The plan for `batch` samples of `num_groups` groups of `size` channels, of `pixels` pixels of `element` bytes.

    wide: rows of 128 bytes and two launches (`fastgen_kernels.rows`) for channels-last batches that fill the
    machine so.
    """
    sample = (num_groups, size, pixels, element, channels_last)
    for launches in (WIDE_ROWS, THROUGHPUT) if wide and channels_last else (THROUGHPUT,):
        large = _plan(launches, *sample)
        if batch * large.blocks * large.splits >= MANY_PROGRAMS:
            return large
    return _plan(LATENCY, *sample)


def _plan(
    launches: tuple[Launch, ...], num_groups: int, size: int, pixels: int, element: int, channels_last: bool
) -> Plan:
    for launch in launches:
        parts = 1
        if channels_last:
            # Few pixels: so many channels that a warp's 16-byte loads are full.
            columns = max(launch.row, 32 * VECTOR // pixels) // element
            taken = min(_groups_of_a_block(columns, size, element), num_groups)
            if not launch.column and size > columns:
                parts = math.ceil(size / columns)
        else:
            columns, taken = PLANES, 1
            if size > MAX_PLANES:
                parts = math.ceil(size / columns)
        width = columns if parts > 1 else taken * size
        if not launch.column or (parts == 1 and width * pixels * element <= launch.column):
            break
    blocks = num_groups * parts if parts > 1 else math.ceil(num_groups / taken)
    lanes = power_of_2(width)
    whole = power_of_2(pixels)
    warp = 32 * VECTOR // element
    num_warps = min(max(lanes * whole // warp, 1), launch.num_warps)
    rows = min(max(num_warps * warp // lanes, 1), whole)
    unroll = min(max(whole // rows, 1), launch.unroll)
    if launch.column:
        splits, run = 1, pixels
    else:
        tile = rows * unroll
        most = math.ceil(pixels / (tile * launch.steps))
        most = min(PROGRAMS // blocks, MAX_PARTIALS // (power_of_2(taken) * parts), most)
        run = math.ceil(pixels / max(most, 1) / tile) * tile
        splits = math.ceil(pixels / run)
    return Plan(
        one_launch=bool(launch.column),
        blocks=blocks,
        width=width,
        parts=parts,
        lanes=lanes,
        groups=power_of_2(taken) if parts == 1 else 1,
        rows=rows,
        unroll=unroll,
        num_warps=num_warps,
        splits=splits,
        run=run,
    )
