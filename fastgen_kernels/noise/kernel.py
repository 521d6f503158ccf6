"""Normal noise as Triton device functions, for use inside other kernels, and a kernel that fills a tensor.

Same words as `reference.py`, bit for bit, and its formula in float32: `noise.error_bound` says how close.
`tl.log` and `tl.cos` would take about three times the instructions, for a range reduction not needed here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference

# Words from here on have u >= sqrt(1/2): there ln u is taken from 1 - u, which the complement of the word
# gives without the cancellation that rounding u to float32 would cause.
_NEAR_ONE = tl.constexpr(0xB504F334)
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)  # sqrt(1/2) as float32
# ln 2 in two parts: the first has 10 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
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
    p = (
        (((((((f * _L0 + _L1) * f + _L2) * f + _L3) * f + _L4) * f + _L5) * f + _L6) * f + _L7) * f + _L8
    ) * f
    log = p * square + e * _LN2_LOW
    log = (log - square * 0.5) + f
    log = log + e * _LN2_HIGH
    return tl.sqrt(log * -2.0)


@triton.jit
def box_muller(radius_word, angle_word):
    """Two normals, float32 [N] each, from two words, uint32 [N]; angle = int32(angle_word) * pi * 2^-31."""
    quadrant = (angle_word + 0x20000000) >> 30  # nearest multiple of a quarter turn; the addition wraps
    t = (angle_word - (quadrant << 30)).to(tl.int32, bitcast=True).to(tl.float32) * _TURN  # in [-pi/4, pi/4]
    square = t * t
    sin = ((square * _S0 + _S1) * square + _S2) * square * t + t
    cos = ((square * _C0 + _C1) * square + _C2) * square * square - square * 0.5 + 1.0
    r = radius(radius_word)
    r = tl.where((quadrant & 2) == 2, -r, r)  # quadrants 2 and 3 are 0 and 1 turned by half
    odd = (quadrant & 1) == 1
    return tl.where(odd, -sin, cos) * r, tl.where(odd, cos, sin) * r


@triton.jit
def words(seed, step, stream, block):
    """Four words of each block, uint32 [N]. seed: int64; step, stream: int32 scalars; block: int32 [N]."""
    zero = block * 0
    return tl.philox(seed, block, zero + step, zero + stream, zero, 10)


@triton.jit
def normals_tile(seed, step, stream, first, BLOCK: tl.constexpr):
    """Normals of elements first .. first + BLOCK - 1, float32 [BLOCK]; first: int32 scalar, a multiple of 4.

    A thread should own whole blocks of 4 elements, else words are made more than once.
    """
    w0, w1, w2, w3 = words(seed, step, stream, first // 4 + tl.arange(0, BLOCK // 4))
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    # The last axes of the joins are (pair, cos or sin): elements 4b .. 4b + 3 are the block's z0 .. z3.
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,))


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


BLOCK, NUM_WARPS = 512, 4  # 4 elements a thread: one Philox block each


def normals(seeds: Tensor, steps: Tensor, stream: int, count: int) -> Tensor:
    """float32 [B, count] for int64 seeds and steps [B]; as `reference.normals`."""
    out = torch.empty(seeds.shape[0], count, dtype=torch.float32, device=seeds.device)
    tiles = triton.cdiv(count, BLOCK)
    with torch.cuda.device_of(out):  # Triton launches on the current device, whatever its arguments live on
        fill_normals[(tiles * seeds.shape[0],)](
            out, seeds, steps, count, tiles, stream, BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=True
        )
    return out
