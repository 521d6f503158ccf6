"""DPM2: Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364) with its midpoint even in log(sigma), without churn."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from .processes import AnyProcess
from .runge_kutta import runge_kutta_step, to_clean
from .sigmas import SigmaOptions, sigma_ladder
from .table import Table, TableBuilder


@dataclass(frozen=True)
class DPM2Options(SigmaOptions):
    """Options of `dpm2`: those of `SigmaOptions`."""


def dpm2(schedule: AnyProcess, steps: int, options: DPM2Options) -> Table:
    """z' = z + (w' - w) slope(w_m), w_m = sqrt(w w'), the slope there found after an Euler step to w_m. Order 2.

    Two rows a step, but for the last, an Euler step to sigma = 0: 2 * steps - 1 network evaluations. As in
    diffusers, Karras' levels are told as whole timesteps, and midpoints as they fall: where steps are shorter than a
    timestep, a midpoint may be told a later time than the step's beginning, and told times then rise.
    """
    ladder = sigma_ladder(schedule, steps, options, whole_karras=True)
    rows = TableBuilder("dpm2", clip=options.clip, threshold=options.threshold)
    for now, after in itertools.pairwise(ladder.knots):
        if after.level == 0.0:
            rows.evaluate(now, to_clean(now, after, options.clipped))
            break
        middle = schedule.point(math.sqrt(now.level * after.level))
        part = (middle.level - now.level) / (after.level - now.level)
        runge_kutta_step(rows, (now, middle), after, ((part,), (0.0, 1.0)), options.clipped)
    return rows.table(initial_scale=ladder.initial_scale)
