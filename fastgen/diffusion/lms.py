"""Linear multistep: Adams-Bashforth in sigma on uneven knots, as in k-diffusion's sample_lms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import bounded
from .processes import AnyProcess
from .sigmas import SigmaOptions, sigma_ladder
from .table import H, Table, TableBuilder, X

MAX_ORDER = 4
# Gauss-Legendre with 4 nodes integrates polynomials up to degree 7 exactly; those here have degree 3 at most.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(MAX_ORDER)


@dataclass(frozen=True)
class LMSOptions(SigmaOptions):
    """Options of `lms`: those of `SigmaOptions`, and

    solver_order: how many slopes a step uses, once there are so many (diffusers gives it to step(), as order)
    """

    solver_order: int = bounded(1, MAX_ORDER, default=MAX_ORDER)


def lms(schedule: AnyProcess, steps: int, options: LMSOptions) -> Table:
    """z' = z + the integral from w to w' of the polynomial through the last slopes. Slots: earlier slopes, by turns."""
    ladder, order = sigma_ladder(schedule, steps, options), options.solver_order
    rows = TableBuilder("lms", clip=options.clip, threshold=options.threshold)
    slots = order - 1
    for i, (now, after) in enumerate(zip(ladder.points, ladder.knots[1:], strict=True)):
        slope = now.slope(options.clipped)
        used = min(i + 1, order)
        slopes = [slope] + [H[(i - k) % slots] for k in range(1, used)]
        weights = adams_weights(ladder.levels[i - used + 1 : i + 1][::-1], after.level)
        z = X / now.scale + sum(w * s for w, s in zip(weights, slopes, strict=True))
        keep = slots > 0 and i + 1 < steps
        rows.evaluate(now, after.scale * z, slot=i % slots if keep else -1, history=slope if keep else None)
    return rows.table(initial_scale=ladder.initial_scale)


def adams_weights(levels: np.ndarray, end: float) -> list[float]:
    """Integrals from levels[0] to `end` of the Lagrange polynomials on `levels`, the newest first; [len(levels)]."""
    half = (end - levels[0]) / 2
    at = levels[0] + half * (_NODES + 1.0)
    weights = []
    for j, own in enumerate(levels):
        polynomial = np.ones(MAX_ORDER)
        for other in np.delete(levels, j):
            polynomial *= (at - other) / (own - other)
        weights.append(float(half * (_WEIGHTS * polynomial).sum()))
    return weights
