"""Row adjustments: what a step needs beyond its row, as scalars per sample, found after the network has answered.

The step's own copy of the rows is changed, [B, 32], and the reverse step stays what it is:

    rescale      F becomes k F, k = 1 + phi (std(F_c) / std(F) - 1)         Lin et al. 2023, arXiv:2305.08891, 3.4
    threshold    x0 becomes clip(x0, s) / s, s a quantile of |x0|           Saharia et al. 2022, arXiv:2205.11487, 2.3
    langevin     x0 becomes g x0, z becomes sqrt(g) z, g = (|z| / |x0|)^2   Song et al. 2021, arXiv:2011.13456, alg. 4

`fastgen.diffusion.run` is the plain twin of the last two. Nothing here waits for the device: every number, also
which order statistic a quantile is, is a tensor, so that a captured step serves all requests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen_kernels.reverse_step import row

RESCALE, THRESHOLD, LANGEVIN = "rescale", "threshold", "langevin"
EVERY_KIND = (RESCALE, THRESHOLD, LANGEVIN)  # each leaves the rows alone that do not ask for it


def adjusted(
    rows: Tensor,
    x: Tensor,
    output: Tensor,
    noise: Tensor | None,
    *,
    guided: bool,
    kinds: tuple[str, ...],
) -> Tensor:
    """A changed copy of `rows`, by the adjustments named in `kinds`.

    rows: float32 [B, 32]. x: float32 [B, C, H, W]. output: the network's, [B or 2B, C or 2C, H, W], as ``reverse_step``
    takes it. noise: float32 [B, C, H, W], what the step will add; needed for LANGEVIN.
    """
    batch, channels = x.shape[:2]
    rows = rows.clone()
    conditional = F = output[:batch, :channels].float()
    if guided:
        unconditional = output[batch:, :channels].float()
        F = unconditional + _spread(rows[:, row.GUIDANCE]) * (conditional - unconditional)
    if RESCALE in kinds:
        spread, wanted = _std(F), _std(conditional)
        # A where, not phi = 0: of a step that serves others the quotient may be infinite.
        works = (rows[:, row.GUIDANCE] != 1.0) & (rows[:, row.RESCALE] != 0) & (spread > 0)
        k = torch.where(works, 1.0 + rows[:, row.RESCALE] * (wanted / spread - 1.0), 1.0)
        rows[:, row.Q].mul_(k)
        _multiply(rows, row.F, k)
    x0 = _spread(rows[:, row.P]) * x + _spread(rows[:, row.Q]) * F
    if THRESHOLD in kinds:
        s = upper_quantile(x0.flatten(1).abs(), rows[:, row.THRESHOLD_TAIL])
        largest = rows[:, row.THRESHOLD_MAX]
        on = largest > 0
        s = torch.minimum(s.clamp(min=1.0), largest)
        rows[:, row.CLIP] = torch.where(on, s, rows[:, row.CLIP])
        _multiply(rows, row.X0, torch.where(on, 1.0 / s, 1.0))
    if LANGEVIN in kinds:
        assert noise is not None
        mode = rows[:, row.LANGEVIN]
        noise_norm, score_norm = (torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (noise, x0))
        together = mode == 2
        # The quotient of means is that of sums; a where, since 0 * nan of others would be nan.
        noise_sum, score_sum = (torch.where(together, norm, 0.0).sum() for norm in (noise_norm, score_norm))
        root = torch.where(together, noise_sum / score_sum, noise_norm / score_norm)
        root = torch.where(mode > 0, root, 1.0)
        _multiply(rows, row.X0, root.square())
        _multiply(rows, row.Z, root)
    return rows


def upper_quantile(values: Tensor, tail: Tensor) -> Tensor:
    """The (1 - tail)-quantile of each row by linear interpolation, as ``torch.quantile``, of any length.

    values: float32 [B, N], none negative. tail: float32 [B], in [0, 1]: the share above. Returns float32 [B].

    A non-negative float's bits are in the order of its value, so that the order statistic is found bit by bit, from
    the highest: 31 times over the values, a byte a value of extra memory. Sorting would need 24, and its place in the
    order a number on the host.
    """
    bits = values.contiguous().view(torch.int32)
    last = values.shape[1] - 1
    rank = last * (1.0 - tail.double())[:, None]
    below = rank.floor()
    index = below.to(torch.int32)
    found = torch.zeros_like(index)
    for bit in range(30, -1, -1):
        candidate = found | (1 << bit)
        fewer = (bits < candidate).sum(1, keepdim=True, dtype=torch.int32)
        found = torch.where(fewer <= index, candidate, found)
    # The next order statistic: the same value where it occurs again, else the least that is larger.
    up_to = (bits <= found).sum(1, keepdim=True, dtype=torch.int32)
    larger = torch.where(bits > found, bits, torch.iinfo(torch.int32).max).amin(1, keepdim=True)
    above = torch.where((up_to > index + 1) | (index >= last), found, larger)
    low, high = found.view(torch.float32).double(), above.view(torch.float32).double()
    fraction = rank - below
    # At an order statistic itself the next, which may be infinite, does not count.
    return torch.where(fraction > 0, low + fraction * (high - low), low).float()[:, 0]


def _multiply(rows: Tensor, term: int, factor: Tensor) -> None:
    """Coefficients a and b of a term, times `factor` [B]."""
    rows[:, row.A + term].mul_(factor)  # by columns: a list of them would be a tensor on the host
    rows[:, row.B + term].mul_(factor)


def _std(values: Tensor) -> Tensor:
    """[B], over everything but the first axis, about the mean (two passes)."""
    flat = values.flatten(1)
    return (flat - flat.mean(1, keepdim=True)).square().mean(1).sqrt()


def _spread(scalars: Tensor) -> Tensor:
    return scalars[:, None, None, None]
