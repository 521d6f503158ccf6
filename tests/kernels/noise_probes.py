"""Kernels that store what the noise's device functions return, so that tests can look at it."""

import triton
import triton.language as tl

from fastgen_kernels.noise.kernel import box_muller, words


@triton.jit
def store_words(
    out,  # int32 [B, 4, BLOCK]: bits of the words
    seeds,  # int64 [B]
    steps,  # int64 [B]
    stream,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    w0, w1, w2, w3 = words(tl.load(seeds + b), tl.load(steps + b).to(tl.int32), stream, i)
    row = out + b * 4 * BLOCK + i
    tl.store(row, w0.to(tl.int32, bitcast=True))
    tl.store(row + BLOCK, w1.to(tl.int32, bitcast=True))
    tl.store(row + 2 * BLOCK, w2.to(tl.int32, bitcast=True))
    tl.store(row + 3 * BLOCK, w3.to(tl.int32, bitcast=True))


@triton.jit
def store_box_muller(
    out,  # float32 [2, count]
    pair,  # int32 [2, count]: bits of the words
    count,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    radius = tl.load(pair + i, mask=mask, other=0).to(tl.uint32, bitcast=True)
    angle = tl.load(pair + count + i, mask=mask, other=0).to(tl.uint32, bitcast=True)
    z0, z1 = box_muller(radius, angle)
    tl.store(out + i, z0, mask=mask)
    tl.store(out + count + i, z1, mask=mask)
