"""DPM2: Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364) with its midpoint even in log(sigma), without churn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .processes import AnyProcess
from .sigmas import SigmaOptions, sigma_ladder
from .table import H, Table, TableBuilder, X


@dataclass(frozen=True)
class DPM2Options(SigmaOptions):
    """Options of `dpm2`: those of `SigmaOptions`."""


def dpm2(schedule: AnyProcess, steps: int, options: DPM2Options) -> Table:
    """z' = z + (w' - w) slope(w_m), w_m = sqrt(w w'), the slope there found after an Euler step to w_m. Order 2.

    Two rows a step, but for the last, an Euler step to sigma = 0: 2 * steps - 1 network evaluations. The slot holds the
    state before the step. As in diffusers, Karras' levels are told as whole timesteps, and midpoints as they fall.
    """
    ladder = sigma_ladder(schedule, steps, options, whole_karras=True)
    rows = TableBuilder("dpm2", clip=options.clip, threshold=options.threshold)
    for now, after in zip(ladder.points, ladder.knots[1:], strict=True):
        z, slope, step = X / now.scale, now.slope(options.clipped), after.level - now.level
        if after.level == 0.0:
            rows.evaluate(now, after.scale * (z + step * slope))
            break
        middle = schedule.point(math.sqrt(now.level * after.level))
        rows.evaluate(
            now, middle.scale * (z + (middle.level - now.level) * slope), slot=0, history=after.scale * z
        )
        rows.evaluate(middle, H[0] + after.scale * step * middle.slope(options.clipped))
    return rows.table(initial_scale=ladder.initial_scale)
