"""How planes are divided among programs: by a plane's size, layout and type, never by the batch."""

from __future__ import annotations

from dataclasses import dataclass

from ..rows import LINE

VECTOR = 16  # bytes that a thread loads at once


@dataclass(frozen=True)
class Tile:
    """A tile of channels by pixels, and the warps that share it."""

    channels: int
    pixels: int
    num_warps: int


# A plane of a tile's pixels or fewer is kept in registers, 16 or 32 elements a thread. Which tile, and how often a
# plane is split, depends on the plane alone, so that a sample's bits are the same in any batch.
PLANAR = (
    Tile(64, 16, 2),  # up to 4x4: planes follow each other, 1024 elements make full lines
    Tile(16, 64, 2),  # 8x8
    Tile(4, 256, 2),  # 16x16
    Tile(1, 1024, 2),  # 32x32: 2 warps, so that a batch of one still has as many programs as channels
    Tile(1, 2048, 4),
    Tile(1, 4096, 8),  # 64x64
    Tile(1, 8192, 16),
    Tile(
        1, 16384, 16
    ),  # 128x128: 32 elements a thread, the most that registers hold beside what is made of them
)
CHANNELS_LAST = (
    Tile(64, 16, 2),  # 4x4: 128-byte lines of half-precision channels
    Tile(32, 64, 4),  # 8x8: 64 bytes, two sectors, are enough for memory and give twice the programs
    Tile(32, 256, 8),  # 16x16
    Tile(32, 512, 16),
    # 32x32: a sector of 32 bytes, whose line's others neighbours fetch at that time. A program is all that a
    # multiprocessor holds, with 16 elements a thread: with 32 some compilers run out of registers.
    Tile(16, 1024, 32),
)

# Larger planes are read twice, in steps of so many tiles that a thread has 64 bytes of loads under way.
STEP_BYTES = 64
THREAD = 8  # elements of such a tile a thread: 16 bytes in half precision
SECTOR = 32  # bytes of adjacent channels: the least that is not waste

# Up to 64x64 channels-last, one program takes whole planes, a sector wide: 128 KiB, of which 132 multiprocessors'
# lie in an H200's L2 when they are read again. A batch of one has few programs (32 of 512 channels): it pays with
# their latency for the launch that it saves, and its bits are those of any batch.
COLUMN_PIXELS = 4096
COLUMN_WARPS = 16


@dataclass(frozen=True)
class Split:
    """How still larger planes are cut: into spans of whole steps."""

    num_warps: int
    programs: int  # wanted for a sample: enough to fill an H200's 132 multiprocessors at batch 1
    most: int  # spans of a plane: every program of the second kernel reads the statistics of them all
    steps: int = 1  # at most a span for every so many, or part of them


PLANAR_SPLIT = Split(8, programs=512, most=128)
CHANNELS_LAST_SPLIT = Split(8, programs=264, most=256)
# Of rows of 128 bytes: a plane has fewer blocks, so that as many programs would take more spans, and each program more
# statistics to read for fewer pixels. With spans of about 64 KiB or more they are an eighth of a 64x64 plane's pixels
# at most, and with 64 spans half of a 256x256 plane's. At batch 1 some multiprocessors are left idle.
WIDE_SPLIT = Split(8, programs=132, most=64, steps=4)


@dataclass(frozen=True)
class Plan:
    """The launch for planes of one size."""

    block_c: int
    block_p: int
    num_warps: int
    unroll: int = 1
    splits: int = 1
    steps: int = 1  # of a span, of unroll tiles each

    @property
    def on_chip(self) -> bool:
        """Whether one tile holds whole planes."""
        return self.splits * self.steps * self.unroll == 1

    @property
    def span(self) -> int:
        """Pixels of a span."""
        return self.steps * self.unroll * self.block_p

    def programs(self, channels: int) -> int:
        """Of a sample."""
        return self.splits * _cdiv(channels, self.block_c)


def choose_plan(
    channels: int, pixels: int, planar: bool, element: int, column: bool = True, wide: bool = False
) -> Plan:
    """The plan for planes of `pixels` pixels of `element` bytes, in samples of `channels` channels.

    column: False where nothing is read a second time, and more programs cost nothing. wide: channels-last planes
    that would be read in shorter rows are read in rows of 128 bytes, and cut into spans (`fastgen_kernels.rows`).
    """
    most_channels = power_of_2(channels)
    wide = wide and not planar and channels * element >= LINE
    for tile in PLANAR if planar else CHANNELS_LAST:
        if pixels <= tile.pixels and not (wide and tile.channels * element < LINE):
            return Plan(min(tile.channels, most_channels), tile.pixels, tile.num_warps)
    whole = column and not planar and not wide and pixels <= COLUMN_PIXELS
    split = PLANAR_SPLIT if planar else WIDE_SPLIT if wide else CHANNELS_LAST_SPLIT
    num_warps = COLUMN_WARPS if whole else split.num_warps
    block_c = 1 if planar else min((LINE if wide else SECTOR) // element, most_channels)
    block_p = THREAD * 32 * num_warps // block_c
    unroll = STEP_BYTES // (THREAD * element)
    needed = _cdiv(pixels, block_p * unroll)
    blocks = _cdiv(channels, block_c)
    spans = 1 if whole else min(_cdiv(needed, split.steps), split.most, _cdiv(split.programs, blocks))
    steps = _cdiv(needed, spans)
    return Plan(block_c, block_p, num_warps, unroll, _cdiv(needed, steps), steps)


def power_of_2(n: int) -> int:
    """The least power of 2 that is at least n."""
    return 1 << (n - 1).bit_length()


def _cdiv(n: int, d: int) -> int:
    return -(-n // d)
