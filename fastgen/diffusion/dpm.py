"""DPM-Solver++, Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling" (arXiv:2211.01095)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import one_of
from .lambdas import LambdaOptions, lambda_ladder
from .schedule import NoiseSchedule
from .table import X0, H, Table, TableBuilder, X

FEW_STEPS = 15  # below this many steps a first-order last step is the more stable


@dataclass(frozen=True)
class DPMSolverOptions(LambdaOptions):
    """Options of `dpmpp_2m`: those of `LambdaOptions`, and

    solver_type: how the difference of the last two estimates enters, midpoint or heun
    lower_order_final: take the last step at first order if there are fewer than 15
    euler_at_final: take the last step at first order however many there are
    """

    solver_type: str = one_of("midpoint", "heun", default="midpoint")
    lower_order_final: bool = True
    euler_at_final: bool = False


def dpmpp_2m(schedule: NoiseSchedule, steps: int, options: DPMSolverOptions) -> Table:
    """Multistep second order in the data prediction (algorithm 2): one slot, the previous estimate of x_0.

    lambda = log(alpha / sigma), h its growth over the step, r = h_previous / h:
        x' = sigma' / sigma x + alpha' (1 - e^-h) x_0 + alpha' w (x_0 - x_0_previous) / r
    with w = (1 - e^-h) / 2 (midpoint) or 1 - (1 - e^-h) / h (heun).

    Where the last step has no length (sigma_min after a visit to t = 0) it is the identity; diffusers' heun returns
    NaN there.
    """
    ladder = lambda_ladder(schedule, steps, options)
    to_zero = ladder.end.sigma == 0.0
    with np.errstate(divide="ignore"):  # the clean end is lambda = +inf
        h = np.diff(ladder.log_snrs)

    first_order = np.zeros(steps + 1, dtype=bool)
    first_order[0] = True  # nothing to look back at
    few = options.lower_order_final and steps < FEW_STEPS
    first_order[steps - 1] |= to_zero or options.euler_at_final or few
    first_order[steps] = True  # no row reads the history after the last

    rows = TableBuilder("dpm++2m", clip=options.clip)
    for i, (now, after) in enumerate(zip(ladder.points, ladder.knots[1:], strict=True)):
        gain = -math.expm1(-h[i])
        x = after.sigma / now.sigma * X + after.alpha * gain * X0
        if not first_order[i] and h[i] > 0:
            weight = gain / 2 if options.solver_type == "midpoint" else 1.0 - gain / h[i]
            x = x + after.alpha * weight * (h[i] / h[i - 1]) * (X0 - H[0])
        slot, history = (-1, None) if first_order[i + 1] else (0, X0)
        rows.evaluate(now, x, slot=slot, history=history)
    return rows.table(initial_scale=ladder.initial_scale)
