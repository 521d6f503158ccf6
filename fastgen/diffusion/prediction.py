"""What a network's output F at a noise level says about the clean sample and the noise.

x = alpha x_0 + sigma epsilon

epsilon        F = epsilon
sample         F = x_0
v_prediction   F = alpha epsilon - sigma x_0     alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, appendix D)
velocity       F = epsilon - x_0                 alpha + sigma = 1 (flow matching, Lipman et al. 2023)
score          F = -epsilon / sigma              (Song et al. 2021)
"""

from __future__ import annotations

Pair = tuple[float, float]


def estimates(prediction_type: str, alpha: float, sigma: float) -> tuple[Pair, Pair]:
    """((p, q), (r, s)) of x_0 = p x + q F and epsilon = r x + s F. alpha and sigma must be above 0 where divided by."""
    if prediction_type == "epsilon":
        return (1.0 / alpha, -sigma / alpha), (0.0, 1.0)
    if prediction_type == "sample":
        return (0.0, 1.0), (1.0 / sigma, -alpha / sigma)
    if prediction_type == "v_prediction":
        return (alpha, -sigma), (sigma, alpha)
    if prediction_type == "velocity":
        return (1.0, -sigma), (1.0, alpha)
    if prediction_type == "score":
        return (1.0 / alpha, sigma**2 / alpha), (0.0, -sigma)
    raise ValueError(f"prediction_type: unknown {prediction_type!r}")
