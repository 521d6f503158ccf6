"""Euler and Heun on the probability flow, with churn: Karras et al. 2022, arXiv:2206.00364.

    dz / dw = (z - x_0) / w,   z = x / scale,   w = sigma / scale

(eq. 3 with s(t) = 1, sigma(t) = t). The slope is the noise where the scale is alpha, and the velocity in flow matching,
so that these are the solvers of all processes. diffusers keeps z and divides it by sqrt(w^2 + 1) for the network;
a table of a variance-preserving process keeps that quotient, the x of all our solvers, so that no row scales the
network's input.

Churn adds noise before a step, which then starts at a higher noise level (algorithm 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .lambdas import point_at_log_snr
from .points import Point, StepPoints
from .processes import AnyProcess
from .runge_kutta import StableOptions, runge_kutta_step, to_clean
from .sigmas import SigmaOptions, sigma_points
from .table import Table, TableBuilder, X, Z

HEUN = ((1.0,), (1 / 2, 1 / 2))  # Butcher's tableau
MAX_GAMMA = math.sqrt(2.0) - 1.0  # of the churn: no more fresh noise than there is already


@dataclass(frozen=True)
class ChurnOptions:
    """Stochasticity, with the names of Karras et al. 2022, algorithm 2.

    S_churn: the noise-to-signal ratio grows by 1 + min(S_churn / steps, sqrt(2) - 1) before a step; 0 = none
    S_tmin, S_tmax: only where it lies between these; S_tmax None = no limit
    S_noise: standard deviation of the new noise, slightly above 1 against lost detail
    """

    S_churn: float = bounded(0.0, 1e6, default=0.0)
    S_tmin: float = bounded(0.0, 1e9, default=0.0)
    S_tmax: float | None = bounded(0.0, 1e9, default=None)
    S_noise: float = bounded(0.0, 10.0, default=1.0)


@dataclass(frozen=True)
class HeunOptions(ChurnOptions, StableOptions):
    """Options of `heun`: those of `StableOptions` and of `ChurnOptions`."""


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
    points = sigma_points(
        schedule,
        steps,
        options,
        log_linear=options.interpolation_type == "log_linear",
        sigma_min=options.sigma_min,
        sigma_max=options.sigma_max,
        to_zero=options.final_sigmas_type == "zero",
    )
    starts = churned_starts(schedule, points, options)
    rows = TableBuilder("euler", clip=options.clip, threshold=options.threshold)
    for i, after in enumerate(points.all[1:]):
        now = starts[i].point
        if continuous:
            now = replace(now, time=0.25 * math.log(now.level))
        step = after.level - now.level
        x = after.scale * (X / now.scale + step * now.slope(options.clipped))
        rows.evaluate(now, starts[i + 1].state(x))
    return rows.table(initial_scale=initial_scale(points, starts[0]))


def heun(schedule: AnyProcess, steps: int, options: HeunOptions) -> Table:
    """Algorithm 2 of the paper: a little noise, an Euler step, then the mean of the slopes at its two ends.

    Two rows per step, but for the last, which goes to sigma = 0 by an Euler step: 2 * steps - 1 network evaluations.
    """
    points, clipped = sigma_points(schedule, steps, options), options.clipped
    starts = churned_starts(schedule, points, options)
    rows = TableBuilder("heun", clip=options.clip, threshold=options.threshold)
    for i, after in enumerate(points.all[1:]):
        now = starts[i].point
        if after.level == 0.0:
            rows.evaluate(now, to_clean(now, after, clipped))
            break
        runge_kutta_step(rows, (now, after), after, HEUN, clipped, starts[i + 1].state)
    return rows.table(initial_scale=initial_scale(points, starts[0]))


@dataclass(frozen=True)
class ChurnedStart:
    """Where a step starts: at `point`, from the state x at the end of the last step, as keep x + std z."""

    point: Point
    keep: float = 1.0
    std: float = 0.0

    def state(self, x: np.ndarray) -> np.ndarray:
        """The state at `point` as a coefficient vector; x: the state at the end of the last step."""
        return self.keep * x + self.std * Z


def churned_starts(process: AnyProcess, points: StepPoints, options: ChurnOptions) -> list[ChurnedStart]:
    """The start of every step with its churn, and last the end of the run: [steps + 1].

    On any process: x = alpha x_0 + sigma epsilon at ratio r = sigma / alpha becomes (alpha' / alpha) x + std z at
    r' = r (1 + gamma), with std = alpha' sqrt(r'^2 - r^2).
    """
    gamma = min(options.S_churn / (len(points) + points.left_out), MAX_GAMMA)
    highest = math.inf if options.S_tmax is None else options.S_tmax
    found = []
    for point in points.starts:
        ratio = point.sigma / point.alpha if point.alpha > 0.0 else math.inf
        if gamma == 0.0 or math.isinf(ratio) or not options.S_tmin <= ratio <= highest:
            found.append(ChurnedStart(point))
            continue
        start = point_at_log_snr(process, point, point.log_snr - math.log1p(gamma))
        std = start.alpha * ratio * math.sqrt(gamma * (2.0 + gamma))
        found.append(ChurnedStart(start, start.alpha / point.alpha, options.S_noise * std))
    return [*found, ChurnedStart(points.end)]


def initial_scale(points: StepPoints, first: ChurnedStart) -> float:
    """Standard deviation of the state where the first step starts."""
    return math.hypot(first.keep * points.initial_scale, first.std)
