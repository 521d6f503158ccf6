"""The engine's normal noise in NumPy: ``fastgen_kernels.noise.reference`` without PyTorch, to the same bit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

INITIAL, STEP = 0, 1  # streams of ``fastgen_kernels.noise.STREAMS``
ROUNDS = 10
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64).reshape(2, 1, 1)
INCREMENTS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64).reshape(2, 1, 1)
MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1, -0.5, 1.0,
)  # fmt: skip
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1, 1.0)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2, -0.5, 1.0)


def normals(seeds: NDArray[np.uint64], step: int, stream: int, count: int) -> NDArray[np.float32]:
    """Standard normal noise of elements 0 .. count - 1, float32 [B, count], of seeds uint64 [B]."""
    shape = (len(seeds), -(-count // 4))
    blocks = np.broadcast_to(np.arange(shape[1], dtype=np.uint64), shape)
    even = np.stack([blocks, np.full(shape, stream, dtype=np.uint64)])
    odd = np.stack([np.full(shape, step, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)])
    key = np.stack([seeds & MASK, seeds >> SHIFT])[:, :, None]
    for i in range(ROUNDS):
        product = (even * MULTIPLIERS)[::-1]
        even = (product >> SHIFT) ^ odd ^ ((key + np.uint64(i) * INCREMENTS) & MASK)
        odd = product & MASK
    pairs = np.stack([even, odd]).astype(np.int64)  # [radius or angle, pair, B, blocks]
    radius = _radius(pairs[0])
    quadrant = (pairs[1] + (1 << 29)) >> 30
    t = (pairs[1] - (quadrant << 30)).astype(np.float64) * (math.pi * 2.0**-31)
    square = t * t
    sin, cos = _polynomial(square, SIN) * t, _polynomial(square, COS)
    radius = radius * (1 - (quadrant & 2)).astype(np.float64)
    turned = (quadrant & 1) == 1
    z = np.stack([np.where(turned, -sin, cos) * radius, np.where(turned, cos, sin) * radius])
    found = z.transpose(2, 3, 1, 0).reshape(len(seeds), -1)[:, :count]
    return found.astype(np.float32)


def _radius(word: NDArray[np.int64]) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp((word.astype(np.float64) + 0.5) * 2.0**-32)  # in [1/2, 1)
    small = mantissa < math.sqrt(0.5)
    f = np.where(small, 2.0 * mantissa, mantissa) - 1.0
    power = (exponent - small).astype(np.float64)
    log = _polynomial(f, LOG) * f + power * math.log(2.0)
    return np.sqrt(log * -2.0)


def _polynomial(variable: NDArray[np.float64], coefficients: tuple[float, ...]) -> NDArray[np.float64]:
    value = variable * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * variable + coefficient
    return value
