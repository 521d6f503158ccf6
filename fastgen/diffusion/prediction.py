"""What a network's output F at (x_t, t) says about the clean sample and the noise, as table coefficients.

    x_t = alpha x_0 + sigma epsilon,   v = alpha epsilon - sigma x_0      (alpha^2 + sigma^2 = 1)

solved for x_0 and epsilon (Salimans & Ho 2022, "Progressive Distillation", appendix D).
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import ConfigError
from .schedule import NoiseSchedule, zero_snr_message
from .table import F, X


def x0_coefficients(
    schedule: NoiseSchedule, t: float, alpha_sigma: tuple[float, float] | None = None
) -> tuple[float, float]:
    """(p, q) of x_0 = p x_t + q F at timestep `t`.

    alpha_sigma: the values at t where a solver does not take them from the schedule; then t may be fractional.
    ConfigError for an epsilon prediction at alphas_cumprod[t] = 0, where x_t holds nothing of x_0.
    """
    alpha, sigma = alpha_sigma or schedule.alpha_sigma(int(t))
    if schedule.prediction_type == "sample":
        return 0.0, 1.0
    if schedule.prediction_type == "v_prediction":
        return alpha, -sigma
    if schedule.alphas_cumprod[math.ceil(t)] == 0.0:
        raise ConfigError(zero_snr_message(math.ceil(t)))
    return 1.0 / alpha, -sigma / alpha


def noise_estimate(schedule: NoiseSchedule, alpha_sigma: tuple[float, float]) -> np.ndarray:
    """epsilon in terms of x_t and F where x_t = alpha x_0 + sigma epsilon, before any clipping of x_0."""
    alpha, sigma = alpha_sigma
    if schedule.prediction_type == "epsilon":
        return F
    if schedule.prediction_type == "sample":
        return (X - alpha * F) / sigma
    return alpha * F + sigma * X
