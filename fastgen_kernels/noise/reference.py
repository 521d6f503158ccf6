"""Counter-based normal noise in PyTorch: Philox4x32-10 and a polynomial Box-Muller transform.

A normal is a function of (sample seed, stream, step, element), never of a state. Words: Salmon, Moraes, Dror
and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32 with ten rounds,

    key     = the sample's seed, its low 32 bits first
    counter = (element // 4, step, stream, 0)

and the words (w0, w1, w2, w3) of a block become the normals of elements 4*block .. 4*block + 3:

    z0, z1 = r(w0) * cos(angle(w1)), r(w0) * sin(angle(w1))        z2, z3 likewise from w2, w3
    r(w)   = sqrt(-2 ln u),  u = (w + 1/2) * 2^-32                 angle(w) = int32(w) * pi * 2^-31

float32 normals are this formula in float64 by short polynomials, rounded once. Nothing but correctly rounded
operations (+, *, sqrt, conversions) in a fixed order is used: `torch.log`, `cos` and fused multiply-adds may
round differently in a vector's body and in its tail, which would make a sample's noise depend on its place in
the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

# ln(1 + f) = f - f^2/2 + f^3 * P(f) on [sqrt(1/2) - 1, sqrt(2) - 1], highest power first; sin and cos on
# [-pi/4, pi/4]: sin t = t + t^3 * S(t^2), cos t = 1 - t^2/2 + t^4 * C(t^2). Single-precision minimax
# polynomials of Moshier's Cephes library (logf.c, sinf.c): their own error is far below float32's spacing.
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD  # sqrt(1/2) as float64


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Philox4x32-10 words, int64 [4, ...] in [0, 2^32), of broadcastable int64 tensors of 32-bit values."""
    # Both multiplications of a round are one operation on a leading axis of two: small inputs cost their
    # dispatches. Constants come from `arange`, not from host memory, so that a CUDA graph could capture this
    # too.
    lane = torch.arange(2, device=key[0].device)
    even, odd, keys = (
        torch.stack(torch.broadcast_tensors(*pair)) for pair in (counter[::2], counter[1::2], key)
    )
    column = (2,) + (1,) * (even.dim() - 1)
    multiplier = (MULTIPLIERS[0] + lane * (MULTIPLIERS[1] - MULTIPLIERS[0])).view(column)
    increment = (KEY_INCREMENTS[0] + lane * (KEY_INCREMENTS[1] - KEY_INCREMENTS[0])).view(column)
    rounds = torch.arange(ROUNDS, device=lane.device).view((ROUNDS,) + (1,) * keys.dim())
    for round_key in ((keys + rounds * increment) & MASK).unbind(0):
        product = (even * multiplier).flip(0)  # wraps modulo 2^64, as the unsigned product does
        even = ((product >> 32) ^ odd ^ round_key) & MASK
        odd = product & MASK
    return torch.stack((even, odd), 1).flatten(0, 1)


def words(seeds: Tensor, steps: Tensor, stream: int, blocks: int) -> Tensor:
    """Words of the first `blocks` blocks of each pair, int64 [4, B, blocks]. seeds, steps: int64 [B]."""
    block = torch.arange(blocks, device=seeds.device)[None]
    seed, step = seeds[:, None], steps[:, None]
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    return philox((block, step & MASK, zero + stream, zero), (seed & MASK, (seed >> 32) & MASK))


def bits(seeds: Tensor, stream: int, count: int) -> Tensor:
    """The first `count` bits of each seed's words at step 0, lowest first: bool [B, count]. seeds: int64 [B]."""
    w = words(seeds, torch.zeros_like(seeds), stream, -(-count // 128)).permute(1, 2, 0)  # [B, blocks, 4]
    byte = (w.unsqueeze(-1) >> (8 * torch.arange(4, device=seeds.device))).bitwise_and_(0xFF).to(torch.uint8)
    place = 1 << torch.arange(8, device=seeds.device, dtype=torch.uint8)
    return (byte.unsqueeze(-1) & place).ne_(0).to(torch.bool).flatten(1)[:, :count]


def _polynomial(variable: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's rule with separate multiplications and additions."""
    value = variable * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * variable + coefficient
    return value


def radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln((word + 1/2) * 2^-32)) to single precision; word: int64 in [0, 2^32); returns float64."""
    bits = ((word.double() + 0.5) * 2.0**-32).view(torch.int64)
    exponent = (bits - SQRT_HALF_BITS) >> 52  # u = 2^exponent * (1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1)
    f = (bits - (exponent << 52)).view(torch.float64) - 1.0
    log = _polynomial(f, (*LOG, -0.5, 1.0)) * f + exponent.double() * math.log(2.0)
    return torch.sqrt(log * -2.0)


def box_muller(pair: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two normals from each pair of words, in float64. pair: int64 [2, ...] in [0, 2^32).

    dtype float64: by the library's functions, to its precision; float32: by polynomials, to that precision.
    """
    if dtype == torch.float64:
        r = torch.sqrt(-2.0 * torch.log((pair[0].double() + 0.5) * 2.0**-32))
        signed = pair[1] - ((pair[1] >> 31) << 32)
        angle = signed.double() * (math.pi * 2.0**-31)
        return r * torch.cos(angle), r * torch.sin(angle)
    r = radius(pair[0])
    quadrant = (pair[1] + (1 << 29)) >> 30  # nearest multiple of a quarter turn, 0 .. 4
    t = (pair[1] - (quadrant << 30)).double() * (math.pi * 2.0**-31)  # the rest, in [-pi/4, pi/4]
    square = t * t
    sin = _polynomial(square, (*SIN, 1.0)) * t
    cos = _polynomial(square, (*COS, -0.5, 1.0))
    r = r * (1 - (quadrant & 2)).double()  # quadrants 2 and 3 are 0 and 1 turned by half
    odd = (quadrant & 1) == 1
    return torch.where(odd, -sin, cos) * r, torch.where(odd, cos, sin) * r


def normals(seeds: Tensor, steps: Tensor, stream: int, count: int, dtype: torch.dtype) -> Tensor:
    """Standard normal noise of elements 0 .. count - 1 for each (seed, step) pair.

    seeds, steps: int64 [B]; stream: its number; dtype: float32 (largest |z| 6.77), or float64 for oracles
    (the last bit may depend on the batch there). Returns [B, count].
    """
    w = words(seeds, steps, stream, -(-count // 4))
    pairs = w.view(2, 2, *w.shape[1:]).transpose(0, 1)  # [radius or angle, pair, B, blocks]
    z = torch.stack(box_muller(pairs, dtype), 1)  # [pair, cos or sin, B, blocks]
    return z.to(dtype).permute(2, 3, 0, 1).reshape(seeds.shape[0], -1)[:, :count]
