"""Euler and Heun on the probability flow in sigma: Karras et al. 2022, arXiv:2206.00364.

    dy / dsigma = (y - x_0) / sigma,   y = x / alpha,   sigma = noise / signal

(eq. 3 with s(t) = 1, sigma(t) = t; without churn). diffusers keeps y and divides it by sqrt(sigma^2 + 1) for the
network; a table keeps that quotient, the x of all our solvers, so that no row scales the network's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .prediction import noise_estimate, x0_coefficients
from .schedule import NoiseSchedule
from .sigmas import SigmaOptions, sigma_knots, sigma_table
from .table import X0, H, Table, TableBuilder, X


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
    """y' = y + (sigma' - sigma) (y - x_0) / sigma. The same as DDIM's step, at noise levels between timesteps too."""
    continuous = options.timestep_type == "continuous"
    if continuous and schedule.prediction_type != "v_prediction":
        raise ConfigError(
            f"timestep_type: continuous is for v_prediction models, this one predicts {schedule.prediction_type}"
        )
    times, sigmas = sigma_knots(
        schedule,
        steps,
        options,
        log_linear=options.interpolation_type == "log_linear",
        sigma_min=options.sigma_min,
        sigma_max=options.sigma_max,
    )
    if len(sigmas) == steps:
        sigmas = np.append(sigmas, 0.0 if options.final_sigmas_type == "zero" else sigma_table(schedule)[0])
    rows = _builder("euler", options)
    for i, t in enumerate(times):
        now, after = float(sigmas[i]), float(sigmas[i + 1])
        # The picture is y, not x: they differ where the last sigma is not 0.
        shown = 1.0 if i == steps - 1 else _alpha(after)
        slope = _slope(schedule, now, options)
        rows.add(
            0.25 * math.log(now) if continuous else float(t),
            x0_coefficients(schedule, float(t), _alpha_sigma(now)),
            shown * (X / _alpha(now) + (after - now) * slope),
        )
    return rows.table(initial_scale=_initial_scale(sigmas, options))


def heun(schedule: NoiseSchedule, steps: int, options: HeunOptions) -> Table:
    """Algorithm 1 of the paper without churn: an Euler step, then the mean of the slopes at its two ends.

    Two rows a step, but for the last, which goes to sigma = 0 by an Euler step: 2 * steps - 1 network evaluations.
    The slot holds the step taken with half the first slope.
    """
    times, sigmas = sigma_knots(schedule, steps, options)
    rows = _builder("heun", options)
    for i, t in enumerate(times):
        now, after = float(sigmas[i]), float(sigmas[i + 1]) if i + 1 < steps else 0.0
        y, slope, step = X / _alpha(now), _slope(schedule, now, options), after - now
        first = x0_coefficients(schedule, float(t), _alpha_sigma(now))
        if after == 0.0:
            rows.add(float(t), first, y + step * slope)
            break
        half = _alpha(after) * (y + step / 2 * slope)
        rows.add(float(t), first, _alpha(after) * (y + step * slope), slot=0, history=half)
        rows.add(
            float(times[i + 1]),
            x0_coefficients(schedule, float(times[i + 1]), _alpha_sigma(after)),
            H[0] + _alpha(after) * step / 2 * _slope(schedule, after, options),
        )
    return rows.table(initial_scale=_initial_scale(sigmas, options))


def _slope(schedule: NoiseSchedule, sigma: float, options: SigmaOptions) -> np.ndarray:
    """(y - x_0) / sigma, which is the noise. From the clipped x_0 where it is clipped, a difference of near numbers;
    else from what the network says about the noise, where nothing cancels."""
    alpha = _alpha(sigma)
    if options.clip_sample:
        return (X / alpha - X0) / sigma
    return noise_estimate(schedule, (alpha, sigma * alpha))


def _builder(name: str, options: SigmaOptions) -> TableBuilder:
    return TableBuilder(name, clip=options.clip_sample_range if options.clip_sample else math.inf)


def _alpha(sigma: float) -> float:
    """alpha of x = alpha x_0 + alpha sigma noise, with alpha^2 (1 + sigma^2) = 1."""
    return 1.0 / math.sqrt(1.0 + sigma**2)


def _alpha_sigma(sigma: float) -> tuple[float, float]:
    return _alpha(sigma), sigma * _alpha(sigma)


def _initial_scale(sigmas: np.ndarray, options: SigmaOptions) -> float:
    """Standard deviation of the first state: that of the noise alone, but for leading spacing, where it is 1."""
    largest = float(sigmas.max())
    return 1.0 if options.timestep_spacing == "leading" else largest * _alpha(largest)
