"""Formulas that spread noise levels between the largest and the smallest one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

RHO = 7.0  # Karras et al. 2022, table 1
BETA = 0.6  # both parameters of the Beta distribution, Lee et al. 2024


def karras(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    """Even in sigma^(1/7) (Karras et al. 2022, eq. 5). ramp: 0 (highest) .. 1 (lowest)."""
    first, last = high ** (1 / RHO), low ** (1 / RHO)
    return (first + ramp * (last - first)) ** RHO


def exponential(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    """Even in log(sigma)."""
    return np.exp(np.linspace(math.log(high), math.log(low), len(ramp)))


def beta(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) (Lee et al. 2024, arXiv:2407.12173)."""
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


FORMULAS: dict[str, Callable[[float, float, np.ndarray], np.ndarray]] = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
}
