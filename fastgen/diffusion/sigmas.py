"""The step points of solvers that count in w = sigma / alpha, Karras' sigma, and the timesteps they belong to.

On a :class:`NoiseSchedule` the rules are those of diffusers' Euler, Heun and their kin: levels are interpolated in the
training schedule at the timesteps visited, or spread between the largest and the smallest of them by a formula, and
the timesteps then read off the schedule. Other processes know their own levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .continuous import ContinuousProcess
from .given import given_sigmas, given_timesteps
from .points import StepPoints, clean, shown
from .schedule import NoiseSchedule
from .spacings import FORMULAS, HIGHEST, SpacingOptions, stable
from .timesteps import STABLE, timesteps


@dataclass(frozen=True)
class SigmaOptions(SpacingOptions):
    """Options of solvers that count in sigma: those of `SpacingOptions`. linspace is not rounded to whole timesteps."""


def sigma_points(
    schedule: NoiseSchedule | ContinuousProcess,
    steps: int,
    options: SigmaOptions,
    *,
    log_linear: bool = False,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
    whole_karras: bool = False,
) -> StepPoints:
    """The step points of `steps` steps.

    log_linear: levels even in log(w) over the whole schedule, whatever the timesteps are, down to its smallest.
    sigma_min, sigma_max: the ends of the formulas' levels instead of the smallest and largest visited. to_zero: end
    at the clean sample, else at the schedule's smallest level, as z. whole_karras: round the timesteps that Karras'
    levels are read off at, as some of diffusers' schedulers do. Raises ConfigError for two formulas at once, and where
    levels do not fall.
    """
    if isinstance(schedule, ContinuousProcess):
        found = schedule.step_points(
            steps, options, log_linear=log_linear, sigma_min=sigma_min, sigma_max=sigma_max, to_zero=to_zero
        )
        return found.after(options.begin_index)
    times, levels = _visited(schedule, steps, options, log_linear, sigma_min, sigma_max)
    if whole_karras and options.use_karras_sigmas:
        times = times.round()
    points = [schedule.point(float(w), float(t)) for t, w in zip(times, levels[:steps], strict=True)]
    last = 0.0 if to_zero else float(schedule.levels[0])
    if len(levels) > steps:  # log_linear says the end, too
        last = float(levels[steps])
    first = points[0]
    # The standard deviation of the noise alone, but for leading spacing, where it is 1.
    scale = 1.0 if options.timestep_spacing == "leading" else max(p.level for p in points) * first.alpha
    end = shown(schedule.point(last, 0.0)) if last else clean()
    return StepPoints(tuple(points), end, scale).after(options.begin_index)


def _visited(
    schedule: NoiseSchedule,
    steps: int,
    options: SigmaOptions,
    log_linear: bool,
    sigma_min: float | None,
    sigma_max: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(times, levels), float64 [steps] each (log_linear: one level more), levels strictly falling, above 0."""
    table = schedule.levels
    spacing, spread = options.timestep_spacing, options.formula_levels
    if steadied := spacing == STABLE:
        spacing = "trailing"
    given, levels = given_timesteps(options, schedule.num_train_timesteps, whole=False), given_sigmas(options)
    if said := given is not None or levels is not None:
        steadied = False
    if given is None:
        times = timesteps(schedule.num_train_timesteps, steps, spacing, options.steps_offset, whole=False)
    else:
        times = given
    sigmas = np.interp(times, np.arange(len(table)), table)
    if log_linear and said:
        raise ConfigError(
            "log_linear spreads the levels itself; leave out timesteps and sigmas",
            argument="interpolation_type",
        )
    if levels is not None:
        sigmas, times = levels, schedule.times(levels)
    if log_linear:
        sigmas = np.exp(np.linspace(math.log(table[-1]), math.log(table[0]), steps + 1))
    if options.formula is None and steadied:
        spread = stable
    if options.formula is not None or steadied:
        low = float(sigmas[-1]) if sigma_min is None else sigma_min
        high = float(sigmas[0]) if sigma_max is None else sigma_max
        if steadied and low < HIGHEST:
            high = min(high, HIGHEST)
        if steps > 1 and low >= high:
            raise ConfigError(f"{low:.4g} must be below sigma_max, {high:.4g}", argument="sigma_min")
        sigmas = spread(low, high, steps)
        times = schedule.times(sigmas)
    elif sigma_min is not None or sigma_max is not None:
        raise ConfigError(
            f"have an effect only with one of {', '.join(FORMULAS)}", argument="sigma_min, sigma_max"
        )
    if len(sigmas) > 1 and sigmas[0] <= sigmas[1]:
        # The stand-in for an infinite sigma; in diffusers the first step then goes backwards.
        sigmas[0] = sigmas[1] * math.sqrt(2.0)
    if np.any(np.diff(sigmas) >= 0):
        raise ConfigError(
            f"{steps} are too many here, sigmas between {sigmas[0]:.4g} and {sigmas[-1]:.4g} no longer fall; "
            "use fewer steps",
            argument="steps",
        )
    return times, sigmas
