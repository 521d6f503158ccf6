"""Which tiles of which form compute a convolution, with the reason for each; no triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .layout import TAPS, channels_last

Form = Literal["descriptor", "gather"]


@dataclass(frozen=True)
class Tile:
    """What a program makes: height x width patches of `channels` channels."""

    height: int
    width: int
    channels: int
    num_warps: int
    num_stages: int

    @property
    def patches(self) -> int:
        return self.height * self.width


# 64 accumulators a thread, and 96 KiB of factors in flight: two blocks share a multiprocessor and hide each other's
# waits.
LARGE = Tile(8, 16, 128, num_warps=8, num_stages=3)
# Long sums by descriptors. At the full speed of sm_90's tensor cores LARGE would read 64 bytes a cycle and
# multiprocessor from the L2 cache, which gives an estimated 40; this one reads 48. An instruction covers 64 channels x
# 256 patches and reads 10 KiB of shared memory, where two of 64 x 128 read 12. A tile of 256 channels x 128 patches is
# made of the latter, and emptier where 256 do not divide the channels. 128 accumulators a thread and 192 KiB of factors
# in flight: one block a multiprocessor. 8 warps, because for 16 the compiler does not use sm_100's tensor memory.
LARGEST = Tile(16, 16, 128, num_warps=8, num_stages=4)
# Products of a sum from which on LARGEST pays: no other block hides its first loads and last stores, an estimated
# 5,000 cycles, where 2048 products take 33,000. float32 takes twice as long for its products and for its stores.
LONG_SUM = 2048
# 64 channels or fewer. The first layer is bound by memory: half the registers, three blocks.
NARROW = Tile(8, 16, 64, num_warps=8, num_stages=3)
# Batch 1: the first four layers of a 256x256 image make 256, 128, 64 and 128 programs, rather than 128, 32, 16, 32.
SMALL = Tile(8, 8, 64, num_warps=4, num_stages=4)
# float32 without TF32 has no tensor cores: threads hold the factors of their 32 outputs in registers.
FULL_PRECISION = Tile(8, 16, 64, num_warps=8, num_stages=3)
MANY_PROGRAMS = 132  # an H200's multiprocessors

# Bytes of a row of factors in one step: the widest swizzle in shared memory, which is a line of the cache; by
# pointers half of it, because addresses and masks of longer rows cost registers.
STEP_BYTES = {"descriptor": 128, "gather": 64}
# Descriptors compute whole blocks of an image, gathers run on from image to image: the most products that blocks
# may compute for one that is wanted, beyond which a gather, at least half as fast, is the better form.
WASTE = 1.5


def count_blocks(y: Tensor, form: Form, tile: Tile) -> int:
    """Blocks of patches that cover y [B, Cout, OH, OW]."""
    batch, _, height, width = y.shape
    if form == "descriptor":
        return batch * _cdiv(height, tile.height) * _cdiv(width, tile.width)
    return _cdiv(batch * height * width, tile.patches)


def count_programs(y: Tensor, form: Form, tile: Tile) -> int:
    return count_blocks(y, form, tile) * _cdiv(y.shape[1], tile.channels)


def choose_tile(y: Tensor, inputs: int, form: Form, precision: str, architecture: int) -> Tile:
    """The tile by which `form` computes y from `inputs` channels on a device of compute capability `architecture`."""
    if y.dtype == torch.float32 and precision == "ieee":
        return FULL_PRECISION
    tile = NARROW if y.shape[1] <= NARROW.channels else LARGE
    # From sm_120 on, which are smaller devices, a block has 99 KiB of shared memory.
    if form == "descriptor" and tile is LARGE and TAPS * inputs >= LONG_SUM and architecture < 120:
        covered = [one.patches * count_blocks(y, form, one) for one in (LARGEST, LARGE)]
        if covered[0] <= covered[1] and count_programs(y, form, LARGEST) >= MANY_PROGRAMS:
            return LARGEST
    return tile if count_programs(y, form, tile) >= MANY_PROGRAMS else SMALL


def descriptors_hold(x: Tensor, y: Tensor, stride: int) -> bool:
    """Whether tensor descriptors can describe x, as the kernels read it, and y."""
    batch, inputs, height, width = x.shape
    return (
        channels_last(y)
        and x.stride(3) == inputs
        and inputs % (STEP_BYTES["descriptor"] // x.element_size()) == 0
        and y.shape[1] * y.element_size() % 16 == 0
        and x.stride(2) > 0
        and (batch == 1 or x.stride(0) > 0)
        and (stride == 1 or height % 2 == width % 2 == 0)
    )


def _cdiv(n: int, d: int) -> int:
    return -(-n // d)
