"""Runge-Kutta solvers of the probability flow, for every process.

    dz / dw = (z - x_0) / w,   z = x / scale,   w = sigma / scale           (`fastgen.diffusion.points`)

Both evaluate the network between the levels of the ladder, and take the last step, to w = 0, by Euler's rule, whose
end is the network's estimate of x_0: there is no slope at w = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .points import Point
from .processes import AnyProcess
from .sigmas import SigmaOptions, sigma_ladder
from .table import H, Table, TableBuilder, X


@dataclass(frozen=True)
class RungeKuttaOptions(SigmaOptions):
    """Options of `midpoint` and `rk4`: those of `SigmaOptions`."""


def midpoint(schedule: AnyProcess, steps: int, options: RungeKuttaOptions) -> Table:
    """The explicit midpoint rule, second order: a step with the slope half way. 2 * steps - 1 network evaluations.

    The slot holds the state at the beginning of the step.
    """
    ladder, clipped = sigma_ladder(schedule, steps, options), options.clipped
    rows = TableBuilder("midpoint", clip=options.clip, threshold=options.threshold)
    for now, after in zip(ladder.points, ladder.knots[1:], strict=True):
        z, step = X / now.scale, after.level - now.level
        if after.level == 0.0:
            rows.evaluate(now, after.scale * (z + step * now.slope(clipped)))
            break
        middle = schedule.point(now.level + step / 2)
        # The slot is kept in the scale of the step's end, as is the state.
        rows.evaluate(
            now, middle.scale * (z + step / 2 * now.slope(clipped)), slot=0, history=after.scale * z
        )
        rows.evaluate(middle, H[0] + after.scale * step * middle.slope(clipped))
    return rows.table(initial_scale=ladder.initial_scale)


def rk4(schedule: AnyProcess, steps: int, options: RungeKuttaOptions) -> Table:
    """The classical fourth-order method: 4 * steps - 3 network evaluations, two slots.

    k_1 = d(z),  k_2 = d(z + h k_1 / 2),  k_3 = d(z + h k_2 / 2),  k_4 = d(z + h k_3)
    z' = z + h (k_1 + 2 k_2 + 2 k_3 + k_4) / 6

    Slot 0 holds z, slot 1 the sum so far.
    """
    ladder, clipped = sigma_ladder(schedule, steps, options), options.clipped
    rows = TableBuilder("rk4", clip=options.clip, threshold=options.threshold)

    def slope(point: Point) -> np.ndarray:
        return point.slope(clipped)

    for now, after in zip(ladder.points, ladder.knots[1:], strict=True):
        z, h = X / now.scale, after.level - now.level
        if after.level == 0.0:
            rows.evaluate(now, after.scale * (z + h * slope(now)))
            break
        middle, scale = schedule.point(now.level + h / 2), after.scale
        z_middle, k = X / middle.scale, slope(middle)
        rows.evaluate(now, middle.scale * (z + h / 2 * slope(now)), slot=0, history=scale * z)
        # (z_middle - z) / 3 is h k_1 / 6. Slots are kept in the scale of the step's end.
        total = H[0] + scale * ((z_middle - H[0] / scale) / 3 + h / 3 * k)
        rows.evaluate(middle, middle.scale * (H[0] / scale + h / 2 * k), slot=1, history=total)
        rows.evaluate(middle, H[0] + scale * h * k, slot=1, history=H[1] + scale * h / 3 * k)
        rows.evaluate(after, H[1] + scale * h / 6 * slope(after))
    return rows.table(initial_scale=ladder.initial_scale)
