"""DPM2: Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364) with its midpoint even in log(sigma), without churn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .points import Point
from .processes import AnyProcess
from .runge_kutta import runge_kutta_table
from .sigmas import SigmaOptions, sigma_ladder
from .table import Table


@dataclass(frozen=True)
class DPM2Options(SigmaOptions):
    """Options of `dpm2`: those of `SigmaOptions`."""


def dpm2(schedule: AnyProcess, steps: int, options: DPM2Options) -> Table:
    """z' = z + (w' - w) slope(w_m), w_m = sqrt(w w'), the slope there found after an Euler step to w_m. Order 2.

    Two rows a step, but for the last, an Euler step to sigma = 0: 2 * steps - 1 network evaluations. As in
    diffusers, Karras' levels are told as whole timesteps, and midpoints as they fall: where steps are shorter than a
    timestep, a midpoint may be told a later time than the step's beginning, and told times then rise.
    """

    def stages(now: Point, after: Point) -> tuple[Sequence[Point], Sequence[Sequence[float]]]:
        middle = schedule.point(math.sqrt(now.level * after.level))
        part = (middle.level - now.level) / (after.level - now.level)
        return (now, middle), ((part,), (0.0, 1.0))

    return runge_kutta_table(
        "dpm2", sigma_ladder(schedule, steps, options, whole_karras=True), options, stages
    )
