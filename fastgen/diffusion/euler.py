"""Euler and Heun on the probability flow: Karras et al. 2022, arXiv:2206.00364.

    dz / dw = (z - x_0) / w,   z = x / scale,   w = sigma / scale

(eq. 3 with s(t) = 1, sigma(t) = t). The slope is the noise where the scale is alpha, and the velocity in flow matching,
so that these are the solvers of all processes. diffusers keeps z and divides it by sqrt(w^2 + 1) for the network;
a table of a variance-preserving process keeps that quotient, the x of all our solvers, so that no row scales the
network's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import bounded, one_of
from ..errors import ConfigError
from .churn import ChurnOptions, arrivals, initial_scale
from .processes import AnyProcess
from .runge_kutta import runge_kutta_step, to_clean
from .sigmas import SigmaOptions, sigma_ladder
from .table import Table, TableBuilder, X

HEUN = ((1.0,), (1 / 2, 1 / 2))  # Butcher's tableau


@dataclass(frozen=True)
class HeunOptions(ChurnOptions, SigmaOptions):
    """Options of `heun`: those of `SigmaOptions` and of `ChurnOptions`."""


@dataclass(frozen=True)
class EulerOptions(ChurnOptions, SigmaOptions):
    """Options of `euler`: those of `SigmaOptions`, of `ChurnOptions`, and

    sigma_min, sigma_max: ends of the Karras, exponential or beta sigmas, instead of those visited
    interpolation_type: sigmas by linear interpolation in the schedule, or log_linear over all of it; log_linear ends
        at the schedule's smallest sigma whatever final_sigmas_type says, as in diffusers
    final_sigmas_type: zero ends at the clean sample, sigma_min at the schedule's smallest sigma
    timestep_type: continuous hands the network log(sigma) / 4 for a time (EDM); for v_prediction only
    """

    sigma_min: float | None = bounded(1e-6, 1e6, default=None)
    sigma_max: float | None = bounded(1e-6, 1e6, default=None)
    interpolation_type: str = one_of("linear", "log_linear", default="linear")
    final_sigmas_type: str = one_of("zero", "sigma_min", default="zero")
    timestep_type: str = one_of("discrete", "continuous", default="discrete")


def euler(schedule: AnyProcess, steps: int, options: EulerOptions) -> Table:
    """z' = z + (w' - w) (z - x_0) / w. The same as DDIM's step, at noise levels between timesteps too."""
    continuous = options.timestep_type == "continuous"
    if continuous and schedule.prediction_type != "v_prediction":
        raise ConfigError(
            f"continuous is for v_prediction models, this one predicts {schedule.prediction_type}",
            argument="timestep_type",
        )
    ladder = sigma_ladder(
        schedule,
        steps,
        options,
        log_linear=options.interpolation_type == "log_linear",
        sigma_min=options.sigma_min,
        sigma_max=options.sigma_max,
        to_zero=options.final_sigmas_type == "zero",
    )
    begins = arrivals(schedule, ladder, options)
    rows = TableBuilder("euler", clip=options.clip, threshold=options.threshold)
    for i, after in enumerate(ladder.knots[1:]):
        now = begins[i].point
        if continuous:
            now = replace(now, time=0.25 * math.log(now.level))
        step = after.level - now.level
        x = after.scale * (X / now.scale + step * now.slope(options.clipped))
        rows.evaluate(now, begins[i + 1].of(x))
    return rows.table(initial_scale=initial_scale(ladder, begins[0]))


def heun(schedule: AnyProcess, steps: int, options: HeunOptions) -> Table:
    """Algorithm 2 of the paper: a little noise, an Euler step, then the mean of the slopes at its two ends.

    Two rows a step, but for the last, which goes to sigma = 0 by an Euler step: 2 * steps - 1 network evaluations.
    """
    ladder, clipped = sigma_ladder(schedule, steps, options), options.clipped
    begins = arrivals(schedule, ladder, options)
    rows = TableBuilder("heun", clip=options.clip, threshold=options.threshold)
    for i, after in enumerate(ladder.knots[1:]):
        now = begins[i].point
        if after.level == 0.0:
            rows.evaluate(now, to_clean(now, after, clipped))
            break
        runge_kutta_step(rows, (now, after), after, HEUN, clipped, begins[i + 1].of)
    return rows.table(initial_scale=initial_scale(ladder, begins[0]))
