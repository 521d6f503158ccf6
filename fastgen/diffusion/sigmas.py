"""Noise levels for solvers that count in sigma = noise / signal, and the (fractional) timesteps they belong to.

diffusers' rules for Euler and Heun: sigmas are interpolated in the training schedule at the timesteps visited, or
spread between the largest and the smallest of them by a formula, and the timesteps then read off the schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .schedule import NoiseSchedule
from .timesteps import SPACINGS, timesteps

RHO = 7.0  # Karras et al. 2022, table 1
BETA = 0.6  # both parameters of the Beta distribution, Lee et al. 2024
STAND_IN = 2.0**-24  # for alphas_cumprod = 0, so that the largest sigma is finite


@dataclass(frozen=True)
class SigmaOptions:
    """Which noise levels are visited; names and defaults are diffusers', but for the clipping, off where it has none.

    use_karras_sigmas: even in sigma^(1/7) (Karras et al. 2022, eq. 5); use_exponential_sigmas: even in log(sigma);
        use_beta_sigmas: quantiles of Beta(0.6, 0.6) (Lee et al. 2024, arXiv:2407.12173). At most one of them
    clip_sample, clip_sample_range: clip the estimate of x_0 to +- the range
    timestep_spacing, steps_offset: see `fastgen.diffusion.timesteps`; linspace is not rounded to whole timesteps
    """

    timestep_spacing: str = one_of(*SPACINGS, default="linspace")
    steps_offset: int = bounded(0, 1000, default=0)
    clip_sample: bool = False
    clip_sample_range: float = bounded(1e-6, 1e6, default=1.0)
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False


def sigma_knots(
    schedule: NoiseSchedule,
    steps: int,
    options: SigmaOptions,
    *,
    log_linear: bool = False,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(times, sigmas), float64 [steps] each (log_linear: one sigma more), sigmas strictly falling, above 0.

    log_linear: sigmas even in log(sigma) over the whole schedule, whatever the timesteps are. sigma_min, sigma_max:
    the ends of Karras', exponential and Beta sigmas instead of the smallest and largest visited.

    Raises ConfigError for two formulas at once, and where sigmas do not fall.
    """
    table = sigma_table(schedule)
    times = timesteps(
        schedule.num_train_timesteps, steps, options.timestep_spacing, options.steps_offset, whole=False
    )
    sigmas = np.interp(times, np.arange(len(table)), table)
    if log_linear:
        sigmas = np.exp(np.linspace(math.log(table[-1]), math.log(table[0]), steps + 1))
    formulas = [f"use_{name}_sigmas" for name in ("karras", "exponential", "beta")]
    chosen = [name for name in formulas if getattr(options, name)]
    if len(chosen) > 1:
        raise ConfigError(f"{', '.join(chosen)}: at most one of them can be true")
    if chosen:
        low = float(sigmas[-1]) if sigma_min is None else sigma_min
        high = float(sigmas[0]) if sigma_max is None else sigma_max
        if steps > 1 and low >= high:
            raise ConfigError(f"sigma_min: {low:.4g} must be below sigma_max, {high:.4g}")
        sigmas = _SPREAD[chosen[0]](low, high, np.linspace(0, 1, steps))
        times = sigma_to_time(sigmas, table)
    elif sigma_min is not None or sigma_max is not None:
        raise ConfigError(f"sigma_min, sigma_max: have an effect only with one of {', '.join(formulas)}")
    if len(sigmas) > 1 and sigmas[0] <= sigmas[1]:
        # The stand-in for an infinite sigma; in diffusers the first step then goes backwards.
        sigmas[0] = sigmas[1] * math.sqrt(2.0)
    if np.any(np.diff(sigmas) >= 0):
        raise ConfigError(
            f"steps: {steps} are too many here, sigmas between {sigmas[0]:.4g} and {sigmas[-1]:.4g} no longer fall; "
            "use fewer steps"
        )
    return times, sigmas


def sigma_table(schedule: NoiseSchedule) -> np.ndarray:
    """sigma of every training timestep, float64 [T]: sqrt((1 - alphas_cumprod) / alphas_cumprod)."""
    kept = np.where(schedule.alphas_cumprod == 0.0, STAND_IN, schedule.alphas_cumprod)
    return np.sqrt((1.0 - kept) / kept)


def sigma_to_time(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Timesteps at which the schedule has `sigmas`, linear in log(sigma) between whole ones, within 0 .. T - 1."""
    if len(table) == 1:
        return np.zeros_like(sigmas)
    logs = np.log(table)
    found = np.log(np.maximum(sigmas, 1e-10))
    # The last entry that is not larger: not a binary search, a stand-in for infinity may be out of order.
    low = np.array([np.flatnonzero(value >= logs)[-1:].sum() for value in found]).clip(max=len(table) - 2)
    weight = ((logs[low] - found) / (logs[low] - logs[low + 1])).clip(0.0, 1.0)
    return (1.0 - weight) * low + weight * (low + 1)


def _karras(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    first, last = high ** (1 / RHO), low ** (1 / RHO)
    return (first + ramp * (last - first)) ** RHO


def _exponential(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    return np.exp(np.linspace(math.log(high), math.log(low), len(ramp)))


def _beta(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    return low + _beta_quantile(1.0 - ramp) * (high - low)


def _beta_quantile(probability: np.ndarray) -> np.ndarray:
    """x where a Beta(0.6, 0.6) variable is below x with this probability, by bisection; float64, to rounding.

    The distribution is symmetric, so that only x up to 1/2 is needed, where the series of the incomplete beta
    function (DLMF 8.17.7) falls by half a term.
    """
    k = np.arange(60)
    # (1 - b)_k / k! / (a + k)
    terms = np.cumprod(np.append(1.0, (1.0 - BETA + k[:-1]) / (1.0 + k[:-1]))) / (BETA + k)
    total = math.gamma(BETA) ** 2 / math.gamma(2 * BETA)
    tail = np.minimum(probability, 1.0 - probability)
    low, high = np.zeros_like(tail), np.full_like(tail, 0.5)
    for _ in range(200):  # ends at neighbouring floats
        middle = (low + high) / 2
        below = middle**BETA * (terms * middle[:, None] ** k).sum(1) / total < tail
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(probability <= 0.5, high * (tail > 0), 1.0 - high * (tail > 0))


_SPREAD = {"use_karras_sigmas": _karras, "use_exponential_sigmas": _exponential, "use_beta_sigmas": _beta}
