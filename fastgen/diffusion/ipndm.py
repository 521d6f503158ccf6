"""iPNDM, Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv:2204.13902)."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import bounded
from .pndm import ADAMS
from .processes import AnyProcess
from .sigmas import SigmaOptions, sigma_ladder
from .table import H, Table, TableBuilder, X


@dataclass(frozen=True)
class IPNDMOptions(SigmaOptions):
    """Options of `ipndm`: those of `SigmaOptions`, and

    solver_order: how many slopes the method looks at, 1 to 4
    """

    solver_order: int = bounded(1, 4, default=4)


def ipndm(schedule: AnyProcess, steps: int, options: IPNDMOptions) -> Table:
    """Adams-Bashforth with the weights of even steps, begun at lower orders: one evaluation a step, order - 1 slots.

    z' = z + (w' - w) (55 d_0 - 59 d_1 + 37 d_2 - 9 d_3) / 24, d the slope dz / dw now and at the points before. `lms`
    has the weights of uneven steps.
    """
    ladder, slots = sigma_ladder(schedule, steps, options), max(options.solver_order - 1, 1)
    rows = TableBuilder("ipndm", clip=options.clip, threshold=options.threshold)
    for i, (now, after) in enumerate(zip(ladder.points, ladder.knots[1:], strict=True)):
        newest = now.slope(clipped=options.clipped)
        slopes = [newest, *(H[(i - k) % slots] for k in range(1, options.solver_order))]
        weights = ADAMS[min(i + 1, options.solver_order) - 1]
        slope = sum(w * d for w, d in zip(weights, slopes, strict=False))
        x = after.scale * (X / now.scale + (after.level - now.level) * slope)
        kept = i + 1 < steps and options.solver_order > 1
        rows.evaluate(now, x, slot=i % slots if kept else -1, history=newest if kept else None)
    return rows.table(initial_scale=ladder.initial_scale)
