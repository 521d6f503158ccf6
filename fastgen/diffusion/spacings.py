"""Formulas that spread noise levels between the largest and the smallest one, and the options that choose them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .clipping import ClipOptions
from .given import GivenLevels
from .timesteps import SPACINGS

HIGHEST = (
    157.0  # where `stable` starts at most on a NoiseSchedule: the end of the linear one of Ho et al. 2020
)
NOISY = 5.0  # the level from which `stable` takes wider steps
KARRAS_RHO = 7.0  # Karras et al. 2022, table 1
POLYEXPONENTIAL_RHO = 1.0  # k-diffusion's default, where the formula is the exponential one
BETA = 0.6  # both parameters of the Beta distribution, Lee et al. 2024


def karras(low: float, high: float, steps: int, rho: float = KARRAS_RHO) -> np.ndarray:
    """Even in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    return (first + np.linspace(0, 1, steps) * (last - first)) ** rho


def exponential(low: float, high: float, steps: int) -> np.ndarray:
    """Even in log(sigma): in log-SNR where signal and noise keep sigma = noise / signal."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def stable(low: float, high: float, steps: int) -> np.ndarray:
    """Even in log(log(1 + sigma / 5)): about even in log-SNR below sigma = 5, and the wider apart the noisier.

    For methods that combine slopes of several points of a step from w to w'. If their estimates of x_0 differ by d, its
    end is off by up to d (w / w') / 2, which the next steps forgive where it is below w' itself: w' may be as small as
    the root of w. On a NoiseSchedule it starts at `HIGHEST` at most: the cosine one begins at 20,291, where x_t holds
    nothing of x_0 and a trained network's estimates differ by more than the few steps that there are can forgive.
    """
    first, last = (math.log(math.log1p(level / NOISY)) for level in (high, low))
    return NOISY * np.expm1(np.exp(np.linspace(first, last, steps)))


def polyexponential(low: float, high: float, steps: int, rho: float = POLYEXPONENTIAL_RHO) -> np.ndarray:
    """log(sigma) falls as (1 - i / (n - 1))^rho (k-diffusion's get_sigmas_polyexponential)."""
    ramp = np.linspace(1, 0, steps) ** rho
    return np.exp(math.log(low) + ramp * (math.log(high) - math.log(low)))


def beta(low: float, high: float, steps: int) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) (Lee et al. 2024, arXiv:2407.12173)."""
    return low + _beta_quantile(1.0 - np.linspace(0, 1, steps)) * (high - low)


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


FORMULAS: dict[str, Callable[..., np.ndarray]] = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_polyexponential_sigmas": polyexponential,
    "use_beta_sigmas": beta,
    "use_lu_lambdas": exponential,  # Lu et al. 2022: even in lambda, which is -log(sigma)
}
WITH_RHO = ("use_karras_sigmas", "use_polyexponential_sigmas")


@dataclass(frozen=True)
class SpacingOptions(GivenLevels, ClipOptions):
    """Which noise levels are visited, common to all solvers that may leave whole timesteps; names are diffusers'.

    clip_sample and the like: see `ClipOptions`; timesteps, sigmas: see `GivenLevels`
    timestep_spacing, steps_offset: see `fastgen.diffusion.timesteps`; without effect on a process without timesteps
    use_karras_sigmas, use_exponential_sigmas, use_polyexponential_sigmas, use_beta_sigmas, use_lu_lambdas: levels
        by a formula of `fastgen.diffusion.spacings` instead, at most one of them. The last is even in log-SNR: the
        exponential one, but for flow matching, where log-SNR is log((1 - sigma) / sigma). diffusers' solvers that
        count in it tell the network other timesteps with the two
    rho: exponent of the Karras (None: 7) or the polyexponential (None: 1) formula
    """

    timestep_spacing: str = one_of(*SPACINGS, default="linspace")
    steps_offset: int = bounded(0, 1000, default=0)
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_polyexponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    rho: float | None = bounded(0.1, 100.0, default=None)

    @property
    def formula(self) -> str | None:
        """The name of the formula chosen, if one is. ConfigError for two at once, or a rho without one that has it."""
        chosen = [name for name in FORMULAS if getattr(self, name)]
        if len(chosen) > 1:
            raise ConfigError("at most one of them can be true", argument=", ".join(chosen))
        if chosen and (given := [n for n in ("timesteps", "sigmas") if getattr(self, n) is not None]):
            raise ConfigError(
                f"cannot be used with {chosen[0]}, which spreads the levels itself", argument=given[0]
            )
        if self.rho is not None and not set(chosen) & set(WITH_RHO):
            raise ConfigError(f"has an effect only with {' or '.join(WITH_RHO)}", argument="rho")
        return chosen[0] if chosen else None

    def formula_levels(self, low: float, high: float, steps: int) -> np.ndarray:
        """`steps` levels from `high` down to `low` by the chosen formula (there must be one), float64 [steps]."""
        assert self.formula is not None
        rho = {} if self.rho is None else {"rho": self.rho}
        return FORMULAS[self.formula](low, high, steps, **rho)
