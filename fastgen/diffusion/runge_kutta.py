"""One step of an explicit Runge-Kutta method on the probability flow, as rows that cancel nothing large.

    dz / dw = k = (z - x_0) / w,   Z_i = z + h sum_j a_ij k_j,   h = w' - w

Written as it stands, a step from w = 20000 to 2 subtracts multiples of z and of h k, thousands of times larger than
what they leave, and in float32 that is most of the digits. But with an x_0 that does not change, every stage is only
the noise scaled down, and so each follows from the one before:

    Z_i = (w_i / w_j) Z_j + sum of multiples of the estimates of x_0      (1)
    Z_i = Z_j + sum of multiples of the slopes k                          (2)

A row's state is the stage that it evaluates; slots hold the estimates (1) or the slopes (2) of earlier stages, and
large terms meet in float64, when the table is written. (1) suits high noise, where x_0 is of the order of 1 and z is
not; (2) low noise, and a network whose output is the slope itself, so that x_0 follows from it by a subtraction. Every
step takes the form with the smaller terms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from .points import Ladder, Point
from .sigmas import SigmaOptions
from .table import X0, H, Table, TableBuilder, X

Stages = Callable[[Point, Point], tuple[Sequence[Point], Sequence[Sequence[float]]]]


def runge_kutta_table(name: str, ladder: Ladder, options: SigmaOptions, stages: Stages) -> Table:
    """The rows of a method down `ladder`: stages(now, after) gives a step's points and tableau, as for
    `runge_kutta_step`. The step to a clean end is Euler's."""
    rows = TableBuilder(name, clip=options.clip, threshold=options.threshold)
    for now, after in itertools.pairwise(ladder.knots):
        if after.level == 0.0:
            rows.evaluate(now, to_clean(now, after, options.clipped))
            break
        points, tableau = stages(now, after)
        runge_kutta_step(rows, points, after, tableau, options.clipped)
    return rows.table(initial_scale=ladder.initial_scale)


def runge_kutta_step(
    rows: TableBuilder,
    stages: Sequence[Point],
    after: Point,
    tableau: Sequence[Sequence[float]],
    clipped: bool,
    arrive: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> None:
    """The rows of a step from stages[0] to `after`, one a stage, s >= 2 of them; s - 2 slots, at least one.

    tableau: a_ij of stages 1 to s - 1, then the weights b; row i has i + 1 numbers. clipped: slopes, too, would
    have to come from x_0, and (1) is taken. arrive: what becomes of the state at the end.
    """
    count, knots = len(stages), [*stages, after]
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
        held, scale = now.slope() if by_slopes else X0, knots[i + 1].scale
        own = growth[i] * X / now.scale + steps[i][i] * held
        if i == count - 1:
            rows.evaluate(now, arrive(H[0] + scale * own))
            return
        x = scale * sum((steps[i][j] * H[j] for j in range(i)), start=own)
        if i < count - 2:
            rows.evaluate(now, x, slot=i, history=held)
            continue
        # All that the last row needs of the earlier ones, in the scale of the step's end.
        total = sum((steps[-1][j] * H[j] for j in range(i)), start=steps[-1][i] * held)
        rows.evaluate(now, x, slot=0, history=after.scale * total)


def _steps(
    stages: Sequence[Point], after: Point, tableau: Sequence[Sequence[float]], by_slopes: bool
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
