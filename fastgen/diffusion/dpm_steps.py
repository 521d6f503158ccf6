"""What the steps of all DPM-Solvers have in common: the exact linear part, and increments of the network's estimates.

Lu et al. 2022, "DPM-Solver" (arXiv:2206.00927) and "DPM-Solver++" (arXiv:2211.01095). With h the growth of lambda over
a step from t to s, m the estimate that is taken for a polynomial in lambda, and D0, D1, D2 its value and divided
differences:

    dpmsolver++       x_s = sigma_s / sigma_t x_t + alpha_s (c0(h) D0 + c1(h) D1 + c2(h) D2)              m = x_0
    dpmsolver         x_s = alpha_s / alpha_t x_t + sigma_s (c0(-h) D0 + c1(-h) D1 + c2(-h) D2)           m = epsilon
    sde-dpmsolver++   x_s = sigma_s / sigma_t e^(-eta h) x_t + alpha_s (c0(h') D0 + ...)
                            + sigma_s sqrt(1 - e^(-2 eta h)) z,   h' = (1 + eta) h
    sde-dpmsolver     x_s = alpha_s / alpha_t x_t + 2 sigma_s (c0(-h) D0 + ...) + sigma_s sqrt(e^(2h) - 1) z

    c0(h) = 1 - e^-h,   c1(h) = 1 - c0(h) / h,   c2(h) = 1 / 2 - c1(h) / h,   that is h phi_1, phi_2, phi_3 of -h

(solver_type midpoint replaces c1 by c0 / 2, which is as good to second order.)
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import ConfigError
from .exponential import phi
from .points import Point, StepPoints
from .table import X0, Z

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
SOLVER_TYPES = ("midpoint", "heun")


def predicts_noise(algorithm_type: str) -> bool:
    """Whether the polynomial is in epsilon, and not in x_0."""
    return not algorithm_type.endswith("++")


def estimate(point: Point, algorithm_type: str, clipped: bool) -> np.ndarray:
    """m at `point`, as a coefficient vector."""
    return point.epsilon(clipped) if predicts_noise(algorithm_type) else X0


def step_factors(
    now: Point, after: Point, algorithm_type: str, solver_type: str, eta: float
) -> tuple[float, tuple[float, float, float]]:
    """The factors of x and of D0, D1, D2 in the step without its noise. eta: 0 for the differential equation."""
    h = after.log_snr - now.log_snr
    if predicts_noise(algorithm_type):
        linear, outer, exponent = after.alpha / now.alpha, (1.0 + eta) * after.sigma, -h
    else:
        decay = math.exp(-eta * h) if eta else 1.0  # h is infinite to the clean end
        linear, outer, exponent = after.sigma / now.sigma * decay, after.alpha, (1.0 + eta) * h
    c0, c1, c2 = coefficients(exponent)
    if solver_type == "midpoint":
        c1 = c0 / 2
    return linear, (outer * c0, outer * c1, outer * c2)


def noise_to(now: Point, after: Point, algorithm_type: str, eta: float) -> np.ndarray:
    """The fresh noise of that step, as a coefficient vector."""
    h = after.log_snr - now.log_snr
    if eta == 0.0 or h <= 0.0:
        return 0.0 * Z
    grown = math.expm1(2.0 * h) if predicts_noise(algorithm_type) else -math.expm1(-2.0 * eta * h)
    return after.sigma * math.sqrt(grown) * Z


def coefficients(h: float) -> tuple[float, float, float]:
    """(c0, c1, c2) of the module's head at h of either sign, to rounding; +inf too."""
    if h == math.inf:
        return 1.0, 1.0, 0.5
    return h * phi(1, -h), h * phi(2, -h), h * phi(3, -h)


def check_end(algorithm_type: str, points: StepPoints) -> None:
    """ConfigError where a noise prediction would divide by the noise of a clean end."""
    if predicts_noise(algorithm_type) and points.end.sigma == 0.0:
        raise ConfigError(
            f"zero cannot be reached with algorithm_type={algorithm_type}; use sigma_min, or "
            f"algorithm_type={algorithm_type}++",
            argument="final_sigmas_type",
        )
