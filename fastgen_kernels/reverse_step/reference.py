"""The universal reverse step in plain PyTorch: every linear diffusion solver's update, from one row of its
table.

For each sample, with its row's coefficients (`row.py`),

    F   = F_unconditional + w * (F_conditional - F_unconditional)        where guided
    x0  = clip(p*x + q*F)
    z   = normal noise * standard deviation from the network             where the variance is learned
    x'  = a . [x, x0, F, z, h1 .. h4]
    h_slot' = b . [x, x0, F, z, h1 .. h4]                                old values on the right
    y   = c * x'                                                         the network's next input

Terms whose coefficients are zero in both a and b do not touch the result, whatever their memory holds.
Everything is accumulated in the state's type by separate multiplications and additions in this order, so that
a sample's bits do not depend on its batch (`addcmul` and `lerp` round differently at the end of a vector).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..noise import STREAMS
from ..noise import reference as noise_reference
from . import row

INTEGER_WORDS = (row.SLOT, row.NOISE_STEP, row.NEXT)


def integer_words(rows: Tensor) -> Tensor:
    """View of float rows [..., 32] as integers of the same width, to read and write their integer words."""
    return rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32)


def convert_rows(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy of rows [..., 32] in another float type: real words rounded, integer words kept as integers."""
    converted = rows.to(dtype)
    index = list(INTEGER_WORDS)
    words = integer_words(converted)
    words[..., index] = integer_words(rows)[..., index].to(words.dtype)
    return converted


def exp2(exponent: Tensor) -> Tensor:
    """2^exponent by the Taylor series of 2^f, |f| <= 1/2, whose remainder is under 1e-8 (float32) or 1e-17
    (float64).

    `torch.exp2` rounds differently at the end of a vector. Exponents are limited to the normal numbers'
    range.
    """
    double = exponent.dtype == torch.float64
    integer, mantissa_bits, largest = (torch.int64, 52, 1022) if double else (torch.int32, 23, 126)
    exponent = exponent.clamp(-largest, largest)
    whole = exponent.round()
    fraction = exponent - whole
    value = torch.ones_like(fraction)
    for k in range(13 if double else 7, 0, -1):
        value = value * (fraction * (math.log(2.0) / k)) + 1.0
    power = ((whole.to(integer) + (largest + 1)) << mantissa_bits).view(exponent.dtype)
    return value * power


def noise_scale(V: Tensor, rows: Tensor, learned: int) -> Tensor:
    """Standard deviation of z that the network's second half of channels V [B, C, H, W] (state's type) asks
    for.

    learned = 1: between the row's bounds, V from -1 to 1 ("learned_range": Nichol and Dhariwal 2021, eq. 15);
    learned = 2: V is the variance itself ("learned").
    """
    if learned == 2:
        return V.clamp(min=0.0).sqrt()
    low, high = (rows[:, word, None, None, None] for word in (row.LOG2_STD_MIN, row.LOG2_STD_MAX))
    return exp2(low + (V * 0.5 + 0.5) * (high - low))


def step_noise(rows: Tensor, seeds: Tensor, x: Tensor) -> Tensor:
    """The rows' noise, shaped and typed as x: stream "step" at the rows' noise steps."""
    steps = integer_words(rows)[:, row.NOISE_STEP].to(torch.int64)
    z = noise_reference.normals(seeds, steps, STREAMS["step"], math.prod(x.shape[1:]), x.dtype)
    return z.reshape(x.shape)


def reverse_step(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One reverse step of each sample; arguments and results as `fastgen_kernels.reverse_step` describes."""
    batch, channels = x.shape[:2]
    guided = F.shape[0] != batch
    coefficient = rows[:, :, None, None, None].unbind(1)
    a, b = coefficient[row.A : row.A + 8], coefficient[row.B : row.B + 8]

    out = F[:batch, :channels].to(x.dtype)
    if guided:
        unconditional = F[batch:, :channels].to(x.dtype)
        out = unconditional + coefficient[row.GUIDANCE] * (out - unconditional)
    x0 = coefficient[row.P] * x + coefficient[row.Q] * out
    clip = coefficient[row.CLIP]
    x0 = torch.minimum(torch.maximum(x0, -clip), clip)

    z = step_noise(rows, seeds, x) if noise is None else noise
    if learned:
        z = z * noise_scale(F[:batch, channels:].to(x.dtype), rows, learned)

    x_next = a[row.X] * x + a[row.X0] * x0 + a[row.F] * out
    g = b[row.X] * x + b[row.X0] * x0 + b[row.F] * out
    for k, term in [(row.Z, z)] + [(row.H + k, h[k]) for k in range(h.shape[0])]:
        used = (a[k] != 0) | (b[k] != 0)
        term = torch.where(used, term, 0.0)  # not by multiplication: 0 * nan is nan
        x_next = x_next + a[k] * term
        g = g + b[k] * term

    slot = integer_words(rows)[:, row.SLOT, None, None, None]
    h_next = h.clone(memory_format=torch.contiguous_format)
    if h.shape[0]:
        h_next = torch.stack([torch.where(slot == k, g, h[k]) for k in range(h.shape[0])])

    y = (coefficient[row.NEXT_SCALE] * x_next).to(F.dtype)
    y = torch.cat((y, y)) if guided else y
    return x_next, h_next, y.contiguous(memory_format=network_format(F))


def network_format(F: Tensor) -> torch.memory_format:
    """The memory format of the network's output, which its next input gets too."""
    return torch.contiguous_format if F.is_contiguous() else torch.channels_last
