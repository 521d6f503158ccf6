"""The engine's normal noise in operations that ONNX has on every device: no shifts, no views of bits.

The words and the formula are those of ``fastgen_kernels.noise.reference`` (Philox4x32-10, Salmon et al. 2011, and a
Box-Muller transform by polynomials in float64), and so is every bit of the result. What differs is how they are
reached: a product of 32-bit numbers is made of 16-bit halves in int64, which no product leaves; a shift is a
division; the exponent of a float is found by comparisons.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen_kernels.noise import STREAMS
from fastgen_kernels.noise.reference import COS, KEY_INCREMENTS, LOG, MASK, MULTIPLIERS, ROUNDS, SIN

HALF = 1 << 16
WORD = 1 << 32
SQRT_HALF = math.sqrt(0.5)


def export_normals(seeds: Tensor, steps: Tensor, stream: str | Tensor, count: int) -> Tensor:
    """Standard normal noise of elements 0 .. count - 1: float32 [B, count], for seeds and steps int64 [B].

    stream: a name in ``STREAMS``, or its number as int64 [1].
    """
    if isinstance(stream, str):
        stream = torch.tensor([STREAMS[stream]], device=seeds.device)
    w = _words(seeds, steps, stream, -(-count // 4))  # [B, blocks, pair, radius or angle]
    r = _radius(w[..., 0])
    angle = w[..., 1]
    quadrant = _quotient(angle + (1 << 29), 1 << 30)  # nearest multiple of a quarter turn, 0 .. 4
    t = (angle - quadrant * (1 << 30)).double() * _exact(math.pi * 2.0**-31)  # the rest, in [-pi/4, pi/4]
    square = t * t
    sin = _polynomial(square, (*SIN, 1.0)) * t
    cos = _polynomial(square, (*COS, -0.5, 1.0))
    r = torch.where((quadrant == 2) | (quadrant == 3), -r, r)  # 0 and 1 turned by half; 4 is 0 again
    odd = (quadrant == 1) | (quadrant == 3)
    z = torch.stack((torch.where(odd, -sin, cos) * r, torch.where(odd, cos, sin) * r), -1)
    return z.float().flatten(1)[:, :count]


def _words(seeds: Tensor, steps: Tensor, stream: Tensor, blocks: int) -> Tensor:
    """int64 [B, blocks, 2, 2]: the four words of each block, in the order of the elements."""
    device = seeds.device
    block = torch.arange(blocks, device=device)[None].expand(seeds.shape[0], blocks)
    step = torch.remainder(steps, WORD)[:, None].expand(seeds.shape[0], blocks)
    # The two lanes of a round lie on the last axis: the even words of the counter, and the odd ones.
    even = torch.stack((block, stream.expand_as(block)), -1)
    odd = torch.stack((step, torch.zeros_like(block)), -1)
    low = torch.remainder(seeds, WORD)
    keys = torch.stack((low, torch.remainder(_quotient(seeds - low, WORD), WORD)), -1)[:, None]
    increments = torch.tensor(KEY_INCREMENTS, device=device)
    high_half = torch.tensor([m // HALF for m in MULTIPLIERS], device=device)
    low_half = torch.tensor([m % HALF for m in MULTIPLIERS], device=device)
    for i in range(ROUNDS):
        key = torch.remainder(keys + i * increments, WORD)
        upper, lower = even * high_half, even * low_half  # below 2^48
        upper = upper + _quotient(lower, HALF)
        high = _quotient(upper, HALF).flip(-1)
        odd, even = (
            torch.bitwise_and(upper * HALF + torch.bitwise_and(lower, HALF - 1), MASK).flip(-1),
            torch.bitwise_xor(torch.bitwise_xor(high, odd), key),
        )
    return torch.stack((even, odd), -1)


def _quotient(value: Tensor, divisor: int) -> Tensor:
    """value / divisor of whole numbers; exact, or the value is not negative."""
    return (
        value.double() * _exact(1.0 / divisor)
    ).long()  # both are powers of two, or have few digits: exact


def _radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln((word + 1/2) * 2^-32)) in float64."""
    f = (word.double() + 0.5) * 2.0**-32
    exponent = torch.zeros_like(f)
    for shift in (32, 16, 8, 4, 2, 1):  # f = u * 2^-exponent in [sqrt(1/2), sqrt(2)): powers of two are exact
        small = f < _exact(SQRT_HALF * 2.0 ** (1 - shift))
        f = torch.where(small, f * 2.0**shift, f)
        exponent = torch.where(small, exponent - shift, exponent)
    f = f - 1.0
    log = _polynomial(f, (*LOG, -0.5, 1.0)) * f + exponent * _exact(math.log(2.0))
    return torch.sqrt(log * -2.0)


def _polynomial(variable: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's rule with separate multiplications and additions."""
    value = variable * _exact(coefficients[0]) + _exact(coefficients[1])
    for coefficient in coefficients[2:]:
        value = value * variable + _exact(coefficient)
    return value


def _exact(number: float) -> Tensor:
    """A float64 constant: the exporter rounds Python's numbers to float32, whatever they are multiplied with."""
    return torch.tensor(number, dtype=torch.float64, device="cpu")
