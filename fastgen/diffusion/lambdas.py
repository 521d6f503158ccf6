"""The step points of solvers that count in lambda = log(alpha / sigma): DPM-Solver and related ones.

On a :class:`NoiseSchedule` the rules are those of diffusers' DPM-Solver: timesteps are whole, and the state reaches a
last point at which the network is not evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import one_of
from ..errors import ConfigError
from .continuous import ContinuousProcess
from .given import given_sigmas, given_timesteps
from .points import Point, StepPoints, clean
from .processes import AnyProcess
from .schedule import NoiseSchedule
from .spacings import FORMULAS, SpacingOptions
from .timesteps import timesteps

TERMINAL_ALPHA_BAR = 2.0**-24  # stands for alphas_cumprod = 0, so that the first log-SNR is finite


@dataclass(frozen=True)
class LambdaOptions(SpacingOptions):
    """Options of solvers that count in lambda: those of `SpacingOptions`, and

    final_sigmas_type: zero ends at the clean sample, sigma_min at the schedule's smallest noise, t = 0
    """

    final_sigmas_type: str = one_of("zero", "sigma_min", default="zero")


def lambda_points(
    schedule: AnyProcess,
    steps: int,
    options: LambdaOptions,
    *,
    rounded: bool = True,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> StepPoints:
    """The step points of `steps` steps.

    Levels by a formula run over the whole schedule, from its largest to its smallest (or from sigma_max to sigma_min),
    and the network is then told whole timesteps, as by diffusers: rounded for Karras' and log-SNR levels (rounded:
    False truncates them, too), truncated for the others.

    Where alphas_cumprod is 0 (zero terminal SNR) 2^-24 stands for it, as in diffusers, and less where steps are so
    many that the next visited value is smaller still (diffusers goes backwards there). ConfigError where levels do not
    fall.
    """
    to_zero = options.final_sigmas_type == "zero"
    if isinstance(schedule, ContinuousProcess):
        found = schedule.step_points(
            steps, options, finite=True, to_zero=to_zero, sigma_min=sigma_min, sigma_max=sigma_max
        )
        return found.after(options.begin_index)
    alpha, sigma = schedule.alpha_sigma(0)
    if options.formula is not None:
        points = _by_formula(schedule, steps, options, rounded, sigma_min, sigma_max)
        if steps > 1:
            alpha, sigma = points[-1].alpha, points[-1].sigma  # the last step has no length
    elif sigma_min is not None or sigma_max is not None:
        raise ConfigError(
            f"have an effect only with one of {', '.join(FORMULAS)}", argument="sigma_min, sigma_max"
        )
    else:
        points = _at_timesteps(schedule, steps, options)
    end = clean() if to_zero else Point(alpha, sigma, scale=alpha)
    return StepPoints(points, end).after(options.begin_index)


def _at_timesteps(schedule: NoiseSchedule, steps: int, options: LambdaOptions) -> tuple[Point, ...]:
    if (levels := given_sigmas(options)) is not None:
        return tuple(schedule.point(float(level)) for level in levels)
    visited = given_timesteps(options, schedule.num_train_timesteps, whole=True)
    if visited is None:
        visited = timesteps(
            schedule.num_train_timesteps, steps, options.timestep_spacing, options.steps_offset, skip_end=True
        )
    kept = schedule.alphas_cumprod[visited]
    if kept[0] == 0.0:  # the stand-in must stay below the next one, or the first step would go backwards
        kept[0] = min([TERMINAL_ALPHA_BAR, *(kept[1:2] / 2)])
    return tuple(
        schedule.point_at(float(t), math.sqrt(bar), math.sqrt(1.0 - bar))
        for t, bar in zip(visited, kept, strict=True)
    )


def _by_formula(
    schedule: NoiseSchedule,
    steps: int,
    options: LambdaOptions,
    rounded: bool,
    sigma_min: float | None,
    sigma_max: float | None,
) -> tuple[Point, ...]:
    low = float(schedule.levels[0]) if sigma_min is None else sigma_min
    high = float(schedule.levels[-1]) if sigma_max is None else sigma_max
    if steps > 1 and low >= high:
        raise ConfigError(f"{low:.4g} must be below sigma_max, {high:.4g}", argument="sigma_min")
    levels = options.formula_levels(low, high, steps)
    if np.any(np.diff(levels) >= 0):
        raise ConfigError(
            f"{steps} are too many here, sigmas between {levels[0]:.4g} and {levels[-1]:.4g} no longer fall; "
            "use fewer steps",
            argument="steps",
        )
    times = schedule.times(levels)
    nearest = rounded and (options.use_karras_sigmas or options.use_lu_lambdas)
    times = times.round() if nearest else np.trunc(times)
    return tuple(schedule.point(float(w), float(t)) for t, w in zip(times, levels, strict=True))


def point_at_log_snr(schedule: AnyProcess, now: Point, log_snr: float) -> Point:
    """The point at lambda = `log_snr` of the process that `now`, a point with noise, belongs to."""
    ratio = math.exp(-log_snr)  # sigma / alpha
    if now.scale == now.alpha:
        return schedule.point(ratio)
    return schedule.point(ratio / (1.0 + ratio))  # flow matching: the level is sigma, and alpha = 1 - sigma
