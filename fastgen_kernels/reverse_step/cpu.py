"""The reverse step on CPU, in place: the reference's arithmetic without work that no sample asks for.

The reference makes noise for every row (hundreds of microseconds for a small image) and copies every
history slot; a step costs tens. Here the coefficients, which are in host memory anyway, say which terms,
slots and noise are needed. The operations that remain are the reference's own, in its order, so both give the
same bits: a term that is left out would have added zero. (Only the sign of a zero may differ.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import row
from .reference import integer_words, noise_scale, step_noise


def reverse_step_(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    y: Tensor,
    rows: Tensor,
    cursor: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> None:
    """One reverse step in place; arguments as `fastgen_kernels.reverse_step_out` describes."""
    batch, channels = x.shape[:2]
    slots = h.shape[0]
    integers = integer_words(rows)
    written = integers[:, row.SLOT].tolist() if slots else []
    keeps_history = any(slot >= 0 for slot in written)
    # Coefficients a, and b where some sample writes a slot: the same operations make both sums. The 8 terms'
    # coefficients are [1 or 2, B, 1, 1, 1] each.
    both = rows[:, row.A : row.B + 8].view(batch, 2, 8)
    nonzero = both != 0
    terms = (both if keeps_history else both[:, :1]).transpose(0, 1)[..., None, None, None].unbind(2)
    used = nonzero.any(1)
    counts = used.sum(0).tolist() if batch > 1 else used[0].tolist()  # per term, in how many samples
    p, q, guidance, clip, next_scale = rows[:, : row.SLOT, None, None, None].unbind(1)

    out = F[:batch, :channels].to(x.dtype)
    if F.shape[0] != batch:
        unconditional = F[batch:, :channels].to(x.dtype)
        out = unconditional + guidance * (out - unconditional)
    x0 = p * x
    x0 += q * out
    torch.minimum(torch.maximum(x0, -clip, out=x0), clip, out=x0)

    total = terms[row.X] * x
    total += terms[row.X0] * x0
    total += terms[row.F] * out
    if counts[row.Z]:
        z = _needed_noise(used[:, row.Z], rows, seeds, x) if noise is None else noise
        if learned:
            z = z * noise_scale(F[:batch, channels:].to(x.dtype), rows, learned)
        total += terms[row.Z] * _where_used(z, used[:, row.Z], counts[row.Z])
    for k in range(slots):
        if counts[row.H + k]:
            total += terms[row.H + k] * _where_used(h[k], used[:, row.H + k], counts[row.H + k])

    x.copy_(total[0])
    if keeps_history:
        if min(written) == max(written):
            h[written[0]].copy_(total[1])
        else:
            samples = [i for i, slot in enumerate(written) if slot >= 0]
            h[[written[i] for i in samples], samples] = total[1, samples]
    scaled = next_scale * x
    y[:batch].copy_(scaled)
    if y.shape[0] != batch:
        y[batch:].copy_(scaled)
    cursor.copy_(integers[:, row.NEXT])


def _where_used(term: Tensor, used: Tensor, count: int) -> Tensor:
    """`term` [B, ...] with zeros in samples that do not use it (not by multiplication: 0 * nan is nan)."""
    if count == used.shape[0]:
        return term
    return torch.where(used[:, None, None, None], term, 0.0)


def _needed_noise(used: Tensor, rows: Tensor, seeds: Tensor, x: Tensor) -> Tensor:
    """Noise of the samples that use it, zeros in the others."""
    if used.all():
        return step_noise(rows, seeds, x)
    z = torch.zeros_like(x)
    z[used] = step_noise(rows[used], seeds[used], x[used])
    return z
