"""How a convolution is divided among programs: which tiles, how the sum is split, what one program finishes; no triton.

The figures are computed for an H200 (132 multiprocessors) at batch 1, not measured. A kernel there lasts 2 to 3 us,
of which a load from memory takes about 0.8: what counts is that every multiprocessor has loads under way at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Tile:
    """What a program computes of the product: `channels` (the rows of the tensor cores' instructions) x `pixels`."""

    channels: int
    pixels: int
    num_warps: int
    num_stages: int


# An instruction of sm_90 takes 64 rows and any multiple of 8 columns. Channels are the rows, of which there are always
# 64; pixels the columns, so that 4x4 of them are 16 columns, where as rows three quarters would be empty.
# 8 warps, because a program has a multiprocessor nearly to itself and its instructions, addresses for the most part,
# take as long as its loads: 806 of them a thread at 64 x 64, where 4 warps have about 1150.
# 4x4 pixels: 4 warps, as 8 would have little less to do.
FEW = Tile(64, 16, num_warps=4, num_stages=4)
# 8x8, or four images of 4x4. 32 rather than 64 columns: twice the tiles, so half as many parts of each sum, whose
# float32 values are written and read again; for 256 channels 3.5 MB of inputs and 1.5 of parts, not 2.3 and 4.7.
HALF = Tile(64, 32, num_warps=8, num_stages=4)
# 16x16 and 32x32. 16 KiB of factors a step, so that 4 steps and two programs fit a multiprocessor; 16 sums a thread.
MEDIUM = Tile(64, 64, num_warps=8, num_stages=4)
# Twice the products for each byte that is read; from so many pixels on that every multiprocessor still has a tile.
LARGE = Tile(128, 128, num_warps=8, num_stages=3)
# float32 without TF32 has no tensor cores: threads hold the factors of their 8 sums in registers.
FULL_PRECISION = Tile(64, 32, num_warps=8, num_stages=2)

STEP_BYTES = 128  # of adjacent channels in a step: a line of the cache, the widest swizzle in shared memory
LEAST_STEP = 16  # terms that a tensor core's instruction multiplies
WASTE = 1.25  # most terms computed for one that is wanted, before a shorter step is taken
# Steps up to which, without a norm, a second launch to add parts would last longer than the steps do: attention's 1x1
# products of 256 channels, whose 4 steps are all under way at once, and of 512.
SHORT = 8
MOST_SPLITS = 32  # the finishing kernel's code holds as many loads

# Of one group's pixels and channels: 512 threads with 32 values each. Larger groups are left to `group_norm`.
MOST_IN_REGISTERS = 16_384
# A finishing program's values to be under way at once: 16 a thread.
UNDER_WAY = 4096
# Without a norm a program takes 16 pixels of 16 channels: 4x4x256 values are 16 programs, 16x16x256 are 256.
PLAIN_BLOCK = 16


@dataclass(frozen=True)
class Plan:
    """tile, and how many terms a step adds; splits: programs among which a sum is split, 1: the product is finished
    where it is made."""

    tile: Tile
    step: int
    splits: int

    def tiles(self, pixels: int, channels: int) -> int:
        """Tiles of `pixels` x `channels` results."""
        return _tiles(self.tile, pixels, channels)


def choose(
    pixels: int, channels: int, terms: tuple[tuple[int, int], ...], size: int, tensor_cores: bool, norm: bool
) -> Plan:
    """The plan of a sum over `terms`, (taps, channels) of every input, at `pixels` x `channels` results.

    size: bytes of an element. norm: whether there is one, for which a second launch is needed anyway. By the batch's
    pixels, not by their shape: two images of 4x4 are one of 4x8.
    """
    step = choose_step(terms, size)
    steps = count_steps(terms, step)
    tile = FULL_PRECISION
    if tensor_cores:
        tile = FEW if pixels <= FEW.pixels else HALF if pixels <= 2 * HALF.pixels else MEDIUM
        if channels > MEDIUM.channels and _tiles(LARGE, pixels, channels) >= MULTIPROCESSORS:
            tile = LARGE
        elif (
            tile is MEDIUM
            and not norm
            and steps <= SHORT
            and _tiles(MEDIUM, pixels, channels) < MULTIPROCESSORS
        ):
            tile = HALF
    if not norm and steps <= SHORT:
        return Plan(tile, step, 1)
    return Plan(tile, step, choose_splits(_tiles(tile, pixels, channels), steps))


def choose_splits(tiles: int, steps: int) -> int:
    """As many as bring the programs near to the number of multiprocessors, none with fewer steps than the longest
    needs: 4 for 128 channels at 32x32 (32 tiles, 18 steps), 8 for 256 at 16x16 (16, 36), 12 at 8x8 and 18 at 4x4.

    A program of two steps has the loads of both under way at once: one step each would only double the parts.
    """
    splits = min(steps, MOST_SPLITS, max(1, (MULTIPROCESSORS + tiles // 2) // tiles))
    return -(-steps // -(-steps // splits))


def choose_step(terms: tuple[tuple[int, int], ...], size: int) -> int:
    """The longest step that wastes little where channels are no multiple of it."""
    step = STEP_BYTES // size
    least = count_steps(terms, LEAST_STEP) * LEAST_STEP
    while step > LEAST_STEP and count_steps(terms, step) * step > WASTE * least:
        step //= 2
    return step


def count_steps(terms: tuple[tuple[int, int], ...], step: int) -> int:
    return sum(taps * -(-channels // step) for taps, channels in terms)


def _tiles(tile: Tile, pixels: int, channels: int) -> int:
    return -(-pixels // tile.pixels) * -(-channels // tile.channels)


@dataclass(frozen=True)
class Finish:
    """A finishing program's block, powers of 2: `pixels` x `channels`, `parts` of its sums loaded at a time."""

    pixels: int
    channels: int
    parts: int
    num_warps: int


def finish(pixels: int, group: int | None, splits: int) -> Finish | None:
    """The block of a finishing program for images of `pixels`; None where a group does not fit into its registers.

    group: channels of a group, which is a program's whole work; None without a norm.
    """
    block_pixels = PLAIN_BLOCK if group is None else power_of_2(pixels)
    block_channels = PLAIN_BLOCK if group is None else power_of_2(group)
    values = block_pixels * block_channels
    if values > MOST_IN_REGISTERS:
        return None
    parts = min(power_of_2(splits), max(1, UNDER_WAY // values))
    # 16 values a thread up to 256 threads, 32 beyond.
    warps = min(16, max(1, values * parts // 512))
    return Finish(block_pixels, block_channels, parts, warps)


def power_of_2(n: int) -> int:
    """The least power of 2 that is not below n."""
    return 1 << math.ceil(math.log2(n)) if n > 1 else 1
