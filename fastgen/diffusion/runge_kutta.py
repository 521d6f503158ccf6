"""Explicit Runge-Kutta methods on the probability flow, for every process, as rows that cancel nothing large.

    dz / dw = k = (z - x_0) / w,   Z_i = z + h sum_j a_ij k_j,   h = w' - w        (`fastgen.diffusion.points`)

The network is evaluated between the step points, too. The last step, to w = 0, is Euler's, whose end is the network's
estimate of x_0: at w = 0 there is no slope.

Written as it stands, a step from w = 20000 to 2 subtracts multiples of z and of h k, thousands of times larger than
what they leave, and in float32 that is most of the digits. But with an x_0 that does not change, every stage is only
the noise scaled down, and so each follows from the one before:

    Z_i = (w_i / w_j) Z_j + sum of multiples of the estimates of x_0      (1)
    Z_i = Z_j + sum of multiples of the slopes k                          (2)

A row's state is the stage that it evaluates; slots hold the estimates (1) or the slopes (2) of earlier stages, and
large terms meet in float64, when the table is written. (1) suits high noise, where x_0 is of the order of 1 and z is
not; (2) suits low noise, and a network whose output is the slope itself, so that x_0 follows from it by a subtraction.
Every step takes the form with the smaller terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..config import one_of
from .points import Point, StepPoints
from .processes import AnyProcess
from .sigmas import SigmaOptions, sigma_points
from .table import X0, H, Table, TableBuilder, X
from .timesteps import SPACINGS, STABLE

Tableau = Sequence[Sequence[float]]
Stages = Callable[[Point, Point], tuple[Sequence[Point], Tableau]]

# Butcher's tableaus: the rows of a_ij after the first, then the weights.
MIDPOINT = ((1 / 2,), (0.0, 1.0))
RK4 = ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def runge_kutta_table(name: str, points: StepPoints, options: SigmaOptions, stages: Stages) -> Table:
    """The rows of a method on all steps of `points`. The step to a clean end is Euler's.

    stages: stages(now, after) gives a step's own points and tableau, as for `runge_kutta_step`.
    """
    rows = TableBuilder(name, clip=options.clip, threshold=options.threshold)
    for now, after in points.steps:
        if after.level == 0.0:
            rows.evaluate(now, to_clean(now, after, options.clipped))
            break
        within, tableau = stages(now, after)
        runge_kutta_step(rows, within, after, tableau, options.clipped)
    return rows.table(initial_scale=points.initial_scale)


def runge_kutta_step(
    rows: TableBuilder,
    stages: Sequence[Point],
    after: Point,
    tableau: Tableau,
    clipped: bool,
    finish: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> None:
    """The rows of a step from stages[0] to `after`, one per stage, s >= 2 of them; s - 2 slots, at least one.

    tableau: a_ij of stages 1 to s - 1, then the weights b; row i has i + 1 numbers. clipped: slopes, too, would
    have to come from x_0, and (1) is taken. finish: given the state at the end of the step, returns the one that the
    row leaves, with churn or fresh noise.
    """
    count, ends = len(stages), [*stages[1:], after]
    growth, steps = _steps(stages, after, tableau, by_slopes=False)
    by_slopes = False
    if not clipped:
        others = _steps(stages, after, tableau, by_slopes=True)
        # What is lost is as large as the largest term; x and F are of the order of 1.
        estimates = [max(map(abs, point.x0)) for point in stages]
        slopes = [np.abs(point.slope()).max() for point in stages]
        by_slopes = bool(np.abs(others[1] * slopes).max() <= np.abs(steps * estimates).max())
        growth, steps = others if by_slopes else (growth, steps)
    for i, now in enumerate(stages):
        held, scale = now.slope() if by_slopes else X0, ends[i].scale
        own = growth[i] * X / now.scale + steps[i][i] * held
        if i == count - 1:
            rows.evaluate(now, finish(H[0] + scale * own))
            return
        x = scale * sum((steps[i][j] * H[j] for j in range(i)), start=own)
        if i < count - 2:
            rows.evaluate(now, x, slot=i, history=held)
            continue
        # All that the last row needs of the earlier ones, in the scale of the step's end.
        total = sum((steps[-1][j] * H[j] for j in range(i)), start=steps[-1][i] * held)
        rows.evaluate(now, x, slot=0, history=after.scale * total)


def _steps(
    stages: Sequence[Point], after: Point, tableau: Tableau, by_slopes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """How every stage, and last the end, follows from the one before, by (2) or (1): multiples of it, [s], and of the
    slopes or the estimates of the stages up to it, [s, s]."""
    count, h = len(stages), after.level - stages[0].level
    units, gains = np.eye(count), np.zeros((count + 1, count))  # gains[i]: Z_i less its multiple of z
    for i, weights in enumerate(tableau, start=1):
        for j, weight in enumerate(weights):
            slope = units[j] if by_slopes else (gains[j] - units[j]) / stages[j].level
            gains[i] += h * weight * slope
    levels = np.array([point.level for point in (*stages, after)])
    growth = np.ones(count) if by_slopes else levels[1:] / levels[:-1]
    return growth, gains[1:] - growth[:, None] * gains[:-1]


def to_clean(now: Point, end: Point, clipped: bool) -> np.ndarray:
    """The state after Euler's step from `now` to the clean `end`, as a coefficient vector: the estimate of x_0."""
    return end.scale * (X / now.scale - now.level * now.slope(clipped))


@dataclass(frozen=True)
class StableOptions(SigmaOptions):
    """Options of methods that combine slopes of several points of a step: those of `SigmaOptions`, and

    timestep_spacing: stable, which is `fastgen.diffusion.spacings.stable` between the first and the last trailing
        timestep; a formula such as use_karras_sigmas then has these ends, too. EDM and flow matching, whose fields say
        the levels, keep their own
    """

    diffusers: ClassVar[Mapping[str, Any]] = {"timestep_spacing": "linspace"}

    timestep_spacing: str = one_of(STABLE, *SPACINGS, default=STABLE)


@dataclass(frozen=True)
class RungeKuttaOptions(StableOptions):
    """Options of `midpoint`, `rk4` and `dpm2`: those of `StableOptions`."""


def midpoint(schedule: AnyProcess, steps: int, options: RungeKuttaOptions) -> Table:
    """The explicit midpoint rule, second order: a step with the slope half way. 2 * steps - 1 network evaluations."""

    def stages(now: Point, after: Point) -> tuple[Sequence[Point], Tableau]:
        return (now, _middle(schedule, now, after)), MIDPOINT

    return runge_kutta_table("midpoint", sigma_points(schedule, steps, options), options, stages)


def rk4(schedule: AnyProcess, steps: int, options: RungeKuttaOptions) -> Table:
    """The classical fourth-order method: 4 * steps - 3 network evaluations, two slots.

    k_1 = d(z),  k_2 = d(z + h k_1 / 2),  k_3 = d(z + h k_2 / 2),  k_4 = d(z + h k_3)
    z' = z + h (k_1 + 2 k_2 + 2 k_3 + k_4) / 6
    """

    def stages(now: Point, after: Point) -> tuple[Sequence[Point], Tableau]:
        middle = _middle(schedule, now, after)
        return (now, middle, middle, after), RK4

    return runge_kutta_table("rk4", sigma_points(schedule, steps, options), options, stages)


def _middle(schedule: AnyProcess, now: Point, after: Point) -> Point:
    return schedule.point((now.level + after.level) / 2)


def dpm2(schedule: AnyProcess, steps: int, options: RungeKuttaOptions) -> Table:
    """DPM2: algorithm 2 of Karras et al. 2022 (arXiv:2206.00364), its midpoint even in log(sigma), without churn.

    z' = z + (w' - w) slope(w_m), w_m = sqrt(w w'); the slope at w_m is evaluated after an Euler step to it. Order 2.
    Two rows per step, but for the last, an Euler step to sigma = 0: 2 * steps - 1 network evaluations. As in
    diffusers, Karras' levels are told as whole timesteps, and midpoints as they fall: where steps are shorter than a
    timestep, a midpoint may be told a later time than the step's beginning, and told times then rise.
    """

    def stages(now: Point, after: Point) -> tuple[Sequence[Point], Tableau]:
        middle = schedule.point(math.sqrt(now.level * after.level))
        part = (middle.level - now.level) / (after.level - now.level)
        return (now, middle), ((part,), (0.0, 1.0))

    return runge_kutta_table(
        "dpm2", sigma_points(schedule, steps, options, whole_karras=True), options, stages
    )
