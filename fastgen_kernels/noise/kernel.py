"""Counter-based normal noise as Triton device functions, for use inside other kernels, and a kernel that fills a tensor.

Same words as `reference.py`, bit for bit, and the same formula; a GPU contracts multiplications and additions, so normals
agree to about a unit in the last place. The polynomials cost some 20 instructions an element less than `tl.log` and
`tl.cos`, whose general range reduction is not needed here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference

_NEAR_ONE = tl.constexpr(reference.NEAR_ONE)
_SQRT_HALF_BITS = tl.constexpr(reference.SQRT_HALF_BITS)
_LN2_HIGH, _LN2_LOW = tl.constexpr(reference.LN2_HIGH), tl.constexpr(reference.LN2_LOW)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (tl.constexpr(c) for c in reference.LOG)
_S0, _S1, _S2 = (tl.constexpr(c) for c in reference.SIN)
_C0, _C1, _C2 = (tl.constexpr(c) for c in reference.COS)
_TURN = tl.constexpr(1.4629180792671596e-09)  # pi * 2^-31


@triton.jit
def radius(word):
    """sqrt(-2 ln((word + 1/2) * 2^-32)). word: uint32 [N]; returns float32 [N]."""
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    m_minus_1 = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    u_minus_1 = (word ^ 0xFFFFFFFF).to(tl.float32) * -2.3283064365386963e-10 - 1.1641532182693481e-10
    f = tl.where(word >= _NEAR_ONE, u_minus_1, m_minus_1)
    e = exponent.to(tl.float32)
    square = f * f
    p = ((((((((f * _L0 + _L1) * f + _L2) * f + _L3) * f + _L4) * f + _L5) * f + _L6) * f + _L7) * f + _L8) * f
    log = p * square + e * _LN2_LOW
    log = (log - square * 0.5) + f
    log = log + e * _LN2_HIGH
    return tl.sqrt(log * -2.0)


@triton.jit
def cos_sin(word):
    """cos and sin of int32(word) * pi * 2^-31. word: uint32 [N]; returns two float32 [N]."""
    quadrant = (word + 0x20000000) >> 30  # nearest multiple of a quarter turn; the addition wraps
    t = (word - (quadrant << 30)).to(tl.int32, bitcast=True).to(tl.float32) * _TURN
    square = t * t
    sin = ((square * _S0 + _S1) * square + _S2) * square * t + t
    cos = ((square * _C0 + _C1) * square + _C2) * square * square - square * 0.5 + 1.0
    odd = (quadrant & 1) == 1
    c = tl.where(odd, sin, cos)
    s = tl.where(odd, cos, sin)
    return tl.where(((quadrant + 1) & 2) == 2, -c, c), tl.where((quadrant & 2) == 2, -s, s)


@triton.jit
def words(seed, step, stream, block):
    """The four words of each block. seed: int64 scalar; step, stream: int32 scalars; block: int32 [N]. uint32 [N] each."""
    zero = block * 0
    return tl.philox(seed, block, zero + step, zero + stream, zero, 10)


@triton.jit
def normals_tile(seed, step, stream, first, BLOCK: tl.constexpr):
    """Normals of elements first .. first + BLOCK - 1, float32 [BLOCK]; first: int32 scalar, a multiple of 4.

    A thread should own whole blocks of 4 elements, else words are made more than once.
    """
    w0, w1, w2, w3 = words(seed, step, stream, first // 4 + tl.arange(0, BLOCK // 4))
    r0, r1 = radius(w0), radius(w2)
    c0, s0 = cos_sin(w1)
    c1, s1 = cos_sin(w3)
    # The last axes of the joins are (pair, cos or sin): elements 4b .. 4b + 3 are the block's z0 .. z3.
    return tl.reshape(tl.join(tl.join(r0 * c0, r1 * c1), tl.join(r0 * s0, r1 * s1)), (BLOCK,))


@triton.jit
def fill_normals(
    out,  # float32 [B, n]
    seeds,  # int64 [B]
    steps,  # int64 [B]
    n,
    tiles,  # cdiv(n, BLOCK)
    stream,
    BLOCK: tl.constexpr,
):
    # One grid axis: B may be samples times steps, more than the second axis admits.
    b = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles) * BLOCK
    z = normals_tile(tl.load(seeds + b), tl.load(steps + b).to(tl.int32), stream, first, BLOCK)
    i = first + tl.arange(0, BLOCK)
    tl.store(out + b.to(tl.int64) * n + i, z, mask=i < n)


@triton.jit
def fill_words(
    out,  # int32 [B, 4, blocks]: bits of the words
    seeds,  # int64 [B]
    steps,  # int64 [B]
    blocks,
    stream,
    BLOCK: tl.constexpr,
):
    """Words themselves, one program a pair: what tests compare."""
    b = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    w0, w1, w2, w3 = words(tl.load(seeds + b), tl.load(steps + b).to(tl.int32), stream, i)
    row = out + b.to(tl.int64) * 4 * blocks + i
    tl.store(row, w0.to(tl.int32, bitcast=True), mask=i < blocks)
    tl.store(row + blocks, w1.to(tl.int32, bitcast=True), mask=i < blocks)
    tl.store(row + 2 * blocks, w2.to(tl.int32, bitcast=True), mask=i < blocks)
    tl.store(row + 3 * blocks, w3.to(tl.int32, bitcast=True), mask=i < blocks)


BLOCK, NUM_WARPS = 512, 4  # 4 elements a thread: one Philox block each


def normals(seeds: Tensor, steps: Tensor, stream: int, count: int) -> Tensor:
    """float32 [B, count] for int64 seeds and steps [B]; as `reference.normals`."""
    out = torch.empty(seeds.shape[0], count, dtype=torch.float32, device=seeds.device)
    tiles = triton.cdiv(count, BLOCK)
    fill_normals[(tiles * seeds.shape[0],)](
        out, seeds, steps, count, tiles, stream, BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=True
    )
    return out
