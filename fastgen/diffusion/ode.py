"""Runge-Kutta solvers of the probability flow, for every process.

    dz / dw = (z - x_0) / w,   z = x / scale,   w = sigma / scale           (`fastgen.diffusion.points`)

Both evaluate the network between the levels of the ladder, and take the last step, to w = 0, by Euler's rule, whose
end is the network's estimate of x_0: there is no slope at w = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .points import Point
from .processes import AnyProcess
from .runge_kutta import runge_kutta_table
from .sigmas import SigmaOptions, sigma_ladder
from .table import Table

Tableau = Sequence[Sequence[float]]

# Butcher's tableaus: the rows of a_ij after the first, then the weights.
MIDPOINT = ((1 / 2,), (0.0, 1.0))
RK4 = ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


@dataclass(frozen=True)
class RungeKuttaOptions(SigmaOptions):
    """Options of `midpoint` and `rk4`: those of `SigmaOptions`."""


def midpoint(schedule: AnyProcess, steps: int, options: RungeKuttaOptions) -> Table:
    """The explicit midpoint rule, second order: a step with the slope half way. 2 * steps - 1 network evaluations."""

    def stages(now: Point, after: Point) -> tuple[Sequence[Point], Tableau]:
        return (now, _middle(schedule, now, after)), MIDPOINT

    return runge_kutta_table("midpoint", sigma_ladder(schedule, steps, options), options, stages)


def rk4(schedule: AnyProcess, steps: int, options: RungeKuttaOptions) -> Table:
    """The classical fourth-order method: 4 * steps - 3 network evaluations, two slots.

    k_1 = d(z),  k_2 = d(z + h k_1 / 2),  k_3 = d(z + h k_2 / 2),  k_4 = d(z + h k_3)
    z' = z + h (k_1 + 2 k_2 + 2 k_3 + k_4) / 6
    """

    def stages(now: Point, after: Point) -> tuple[Sequence[Point], Tableau]:
        middle = _middle(schedule, now, after)
        return (now, middle, middle, after), RK4

    return runge_kutta_table("rk4", sigma_ladder(schedule, steps, options), options, stages)


def _middle(schedule: AnyProcess, now: Point, after: Point) -> Point:
    return schedule.point((now.level + after.level) / 2)
