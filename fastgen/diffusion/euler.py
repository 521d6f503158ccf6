"""Euler and Heun on the probability flow: Karras et al. 2022, arXiv:2206.00364.

    dz / dw = (z - x_0) / w,   z = x / scale,   w = sigma / scale

(eq. 3 with s(t) = 1, sigma(t) = t; without churn). diffusers keeps z and divides it by sqrt(w^2 + 1) for the network;
a table of a variance-preserving process keeps that quotient, the x of all our solvers, so that no row scales the
network's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import bounded, one_of
from ..errors import ConfigError
from .points import Ladder
from .schedule import NoiseSchedule
from .sigmas import SigmaOptions, sigma_ladder
from .table import H, Table, TableBuilder, X


@dataclass(frozen=True)
class HeunOptions(SigmaOptions):
    """Options of `heun`: those of `SigmaOptions`."""


@dataclass(frozen=True)
class EulerOptions(SigmaOptions):
    """Options of `euler`: those of `SigmaOptions`, and

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


def euler(schedule: NoiseSchedule, steps: int, options: EulerOptions) -> Table:
    """z' = z + (w' - w) (z - x_0) / w. The same as DDIM's step, at noise levels between timesteps too."""
    continuous = options.timestep_type == "continuous"
    if continuous and schedule.prediction_type != "v_prediction":
        raise ConfigError(
            f"timestep_type: continuous is for v_prediction models, this one predicts {schedule.prediction_type}"
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
    if continuous:
        told = tuple(replace(point, time=0.25 * math.log(point.level)) for point in ladder.points)
        ladder = replace(ladder, points=told)
    return euler_table("euler", ladder, options.clip)


def euler_table(name: str, ladder: Ladder, clip: float) -> Table:
    """Euler's steps down any ladder."""
    rows = TableBuilder(name, clip=clip)
    for now, after in zip(ladder.points, ladder.knots[1:], strict=True):
        slope = now.slope(clipped=clip < math.inf)
        rows.evaluate(now, after.scale * (X / now.scale + (after.level - now.level) * slope))
    return rows.table(initial_scale=ladder.initial_scale)


def heun(schedule: NoiseSchedule, steps: int, options: HeunOptions) -> Table:
    """Algorithm 1 of the paper without churn: an Euler step, then the mean of the slopes at its two ends.

    Two rows a step, but for the last, which goes to sigma = 0 by an Euler step: 2 * steps - 1 network evaluations.
    The slot holds the step taken with half the first slope.
    """
    ladder, clipped = sigma_ladder(schedule, steps, options), options.clip_sample
    rows = TableBuilder("heun", clip=options.clip)
    for now, after in zip(ladder.points, ladder.knots[1:], strict=True):
        z, slope, step = X / now.scale, now.slope(clipped), after.level - now.level
        if after.level == 0.0:
            rows.evaluate(now, after.scale * (z + step * slope))
            break
        half = after.scale * (z + step / 2 * slope)
        rows.evaluate(now, after.scale * (z + step * slope), slot=0, history=half)
        rows.evaluate(after, H[0] + after.scale * step / 2 * after.slope(clipped))
    return rows.table(initial_scale=ladder.initial_scale)
