"""How an image is divided among programs. The arithmetic of an output does not depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from ..adain.plan import power_of_2
from ..rows import LINE

# 8 elements a thread: 16 bytes in half precision. A window of four rows of them, in float32, are 32 registers.
THREAD = 8
WARPS = 4  # fewer where there would be less than a program for each multiprocessor
MULTIPROCESSORS = 132  # of an H200
ROWS = 4  # groups of rows a program: each output then costs 7 loads of a filter of 4 taps, rather than 16
PROGRAMS = 4 * MULTIPROCESSORS  # below that, rows are given to programs of their own
MOST_CHANNELS = 128  # adjacent channels of a program


@dataclass(frozen=True)
class Plan:
    """The launch for one image size."""

    block_c: int
    block_p: int
    rows: int
    row_blocks: int
    column_blocks: int
    num_warps: int


def choose_plan(
    channels: int, batch: int, rows: int, columns: int, planar: bool, element: int, taps: int
) -> Plan:
    """The plan for `rows` x `columns` groups of outputs of `channels` channels of `element` bytes.

    planar: columns lie next to each other; else channels do.
    """
    warps = WARPS
    while True:
        tile = THREAD * 32 * warps
        if planar:
            block_c, block_p = 1, min(power_of_2(columns), tile if taps == 1 else tile // 2)
        else:
            wide = min(MOST_CHANNELS, tile // power_of_2(columns))
            block_c = min(power_of_2(channels), max(LINE // element, wide))
            block_p = min(power_of_2(columns), max(tile // block_c, 1))
        column_blocks = -(-columns // block_p)
        each = batch * column_blocks * -(-channels // block_c)
        if warps == 1 or each * rows >= MULTIPROCESSORS:
            break
        warps //= 2
    most = 1 if taps == 1 else ROWS
    while most > 1 and each * -(-rows // most) < PROGRAMS:
        most //= 2
    most = min(most, power_of_2(rows))
    warps = min(warps, max(1, block_c * block_p // (THREAD * 32)))
    return Plan(block_c, block_p, most, -(-rows // most), column_blocks, warps)
