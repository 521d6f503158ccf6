"""Counter-based normal noise in PyTorch: Philox4x32-10 and a polynomial Box-Muller transform.

A normal is a function of (sample seed, stream, step, element), never of a state. Words: Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32 with ten rounds,

    key     = the sample's seed, its low 32 bits first
    counter = (element // 4, step, stream, 0)

and the words (w0, w1, w2, w3) of a block become the normals of elements 4*block .. 4*block + 3:

    z0, z1 = r(w0) * cos(angle(w1)), r(w0) * sin(angle(w1))        z2, z3 likewise from w2, w3
    r(w)   = sqrt(-2 ln u),  u = (w + 1/2) * 2^-32                 angle(w) = int32(w) * pi * 2^-31

In float32 nothing but correctly rounded operations (+, *, sqrt, conversions) in a fixed order is used: `torch.log`,
`cos` and fused multiply-adds round differently in a vector's body and in its tail, which would make a sample's noise
depend on its place in the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

# Words from here on have u >= sqrt(1/2): there ln u is taken from 1 - u, which the complement of the word gives without
# the cancellation that rounding u to float32 would cause.
NEAR_ONE = 0xB504F334
SQRT_HALF_BITS = 0x3F3504F3  # sqrt(1/2) as float32
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # the first has 10 bits: its product with an exponent is exact

# ln(1 + f) = f - f^2/2 + f^3 * P(f) on [sqrt(1/2) - 1, sqrt(2) - 1], highest power first; sin and cos on [-pi/4, pi/4]:
# sin t = t + t^3 * S(t^2), cos t = 1 - t^2/2 + t^4 * C(t^2). Single-precision minimax polynomials of Moshier's Cephes
# library (logf.c, sinf.c).
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Philox4x32-10 words of broadcastable int64 tensors that hold 32-bit values: [4, ...] int64 in [0, 2^32)."""
    # Both multiplications of a round are one operation on a leading axis of two: small inputs cost their dispatches.
    # Constants come from `arange`, not from host memory, so that a CUDA graph could capture this too.
    lane = torch.arange(2, device=key[0].device)
    even, odd, keys = (torch.stack(torch.broadcast_tensors(*pair)) for pair in (counter[::2], counter[1::2], key))
    column = (2,) + (1,) * (even.dim() - 1)
    multiplier = (MULTIPLIERS[0] + lane * (MULTIPLIERS[1] - MULTIPLIERS[0])).view(column)
    increment = (KEY_INCREMENTS[0] + lane * (KEY_INCREMENTS[1] - KEY_INCREMENTS[0])).view(column)
    rounds = torch.arange(ROUNDS, device=lane.device).view((ROUNDS,) + (1,) * keys.dim())
    for round_key in ((keys + rounds * increment) & MASK).unbind(0):
        product = (even * multiplier).flip(0)  # wraps modulo 2^64, as the unsigned product does
        even = ((product >> 32) ^ odd ^ round_key).bitwise_and_(MASK)
        odd = product & MASK
    return torch.stack((even, odd), 1).flatten(0, 1)


def words(seeds: Tensor, steps: Tensor, stream: int, blocks: int) -> Tensor:
    """Words of the first `blocks` blocks of each (seed, step) pair. seeds, steps: int64 [B]. Returns int64 [4, B, blocks]."""
    block = torch.arange(blocks, device=seeds.device)[None]
    seed, step = seeds[:, None], steps[:, None]
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    return philox((block, step & MASK, zero + stream, zero), (seed & MASK, (seed >> 32) & MASK))


def _polynomial(variable: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's rule with separate multiplications and additions."""
    value = variable * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value.mul_(variable).add_(coefficient)
    return value


def radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln((word + 1/2) * 2^-32)) in float32; word: int64 in [0, 2^32)."""
    u = word.to(torch.float32) * 2.0**-32 + 2.0**-33
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23  # u = 2^exponent * m, m in [sqrt(1/2), sqrt(2))
    m_minus_1 = (bits - (exponent << 23)).view(torch.float32) - 1.0
    u_minus_1 = (MASK - word).to(torch.float32) * -(2.0**-32) - 2.0**-33
    f = torch.where(word >= NEAR_ONE, u_minus_1, m_minus_1)
    square = f * f
    log = _polynomial(f, LOG).mul_(f).mul_(square)
    log = log + exponent * LN2_LOW
    log = (log - square * 0.5) + f
    log = log + exponent * LN2_HIGH
    return log.mul_(-2.0).sqrt_()


def cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of int32(word) * pi * 2^-31 in float32; word: int64 in [0, 2^32)."""
    quadrant = (word + (1 << 29)) >> 30  # nearest multiple of a quarter turn, 0..4; 4 counts as 0
    t = (word - (quadrant << 30)).to(torch.float32) * (math.pi * 2.0**-31)  # in [-pi/4, pi/4]
    square = t * t
    sin = _polynomial(square, SIN).mul_(square).mul_(t).add_(t)
    cos = _polynomial(square, COS).mul_(square).mul_(square) - square * 0.5 + 1.0
    odd = (quadrant & 1) == 1
    cos_sign = 1 - ((quadrant + 1) & 2)  # negative in quadrants 1 and 2
    sin_sign = 1 - (quadrant & 2)  # ... in 2 and 3
    return torch.where(odd, sin, cos) * cos_sign, torch.where(odd, cos, sin) * sin_sign


def box_muller(pair: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two normals from each pair of words. pair: int64 [2, ...]; float64 follows the formula, float32 approximates it."""
    if dtype == torch.float64:
        r = torch.sqrt(-2.0 * torch.log((pair[0].double() + 0.5) * 2.0**-32))
        signed = pair[1] - ((pair[1] >> 31) << 32)
        angle = signed.double() * (math.pi * 2.0**-31)
        return r * torch.cos(angle), r * torch.sin(angle)
    r = radius(pair[0])
    cos, sin = cos_sin(pair[1])
    return cos.mul_(r), sin.mul_(r)


def normals(seeds: Tensor, steps: Tensor, stream: int, count: int, dtype: torch.dtype) -> Tensor:
    """Standard normal noise of elements 0 .. count - 1 for each (seed, step) pair.

    seeds, steps: int64 [B]; stream: its number; dtype: float32 (largest |z| 6.77; error within 3e-7 up to |z| = 4) or
    float64 (same words, the formula in float64: for oracles, where the last bit may depend on the batch).
    Returns [B, count].
    """
    w = words(seeds, steps, stream, -(-count // 4))
    pairs = w.view(2, 2, *w.shape[1:]).transpose(0, 1)  # [radius or angle, pair, B, blocks]
    z = torch.stack(box_muller(pairs, dtype), 1)  # [pair, cos or sin, B, blocks]
    return z.permute(2, 3, 0, 1).reshape(seeds.shape[0], -1)[:, :count]
