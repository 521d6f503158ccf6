"""Exponential Adams methods: what DEIS, UniPC and SA-Solver have in common.

With lambda = log(alpha / sigma) and h its growth over a step from s to t, the probability flow has the exact solutions

    x_t = sigma_t / sigma_s x_s + alpha_t int_0^h e^(u - h) x_0(u) du      data prediction
    x_t = alpha_t / alpha_s x_s - sigma_t int_0^h e^(h - u) epsilon(u) du  noise prediction

u counted from lambda_s (Lu et al. 2022, arXiv:2211.01095, eq. 8, and arXiv:2206.00927, eq. 3.4). A multistep method
puts in the polynomial through the estimates that it remembers; the integral is then a weighted sum of them. A corrector
adds the newest estimate, found at the end of the step, and takes the step again. Both begin at the same x_s, so that a
row corrects x_t by the difference of the two sums: neither x_s nor its noise need be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .lambdas import LambdaOptions
from .points import Point, StepPoints
from .table import X0, H, Table, TableBuilder, X, Z

FEW_STEPS = 15  # with fewer steps than this, lower orders at the end are the more stable
SERIES = 2.0  # up to here phi's series loses no digits, beyond it its recursion loses none
Weigh = Callable[[int], np.ndarray]


def phi(k: int, z: float) -> float:
    """The functions of exponential integrators, phi_0 = e^z, phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z, to rounding."""
    if abs(z) <= SERIES:
        return math.fsum(z**j / math.factorial(j + k) for j in range(30))
    value = math.exp(z)
    for j in range(k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value


def adams_weights(
    log_snrs: np.ndarray, step: int, newest: int, count: int, rate: float, slope: float | None = None
) -> np.ndarray:
    """The weights of the estimates at points newest, newest - 1, ... in the step from point `step`: [count].

    sum w_j P(u_j) = int_0^h e^(-rate (h - u)) P(u) du for every polynomial P of degree < count. slope: what stands for
    the integral of P(u) = u with two estimates, where a method has an approximation of its own. A step of no length has
    weights 0; one of infinite length ends at the newest estimate.
    """
    h = float(log_snrs[step + 1] - log_snrs[step])
    if h <= 0.0:  # of no length, but for rounding
        return np.zeros(count)
    if math.isinf(h):
        return np.array([1.0 / rate, *[0.0] * (count - 1)])
    nodes = log_snrs[newest - np.arange(count)] - log_snrs[step]
    unit = max(h, float(np.abs(nodes).max()))  # keeps the powers of order 1
    moments = [math.factorial(k) * phi(k + 1, -rate * h) * h * (h / unit) ** k for k in range(count)]
    if slope is not None and count == 2:
        moments[1] = slope / unit
    return np.linalg.solve(np.vander(nodes / unit, count, increasing=True).T, moments)


def step_orders(points: StepPoints, highest: int, *, falling: bool = False) -> np.ndarray:
    """The order of every step, int [steps]: as many estimates as there are, one in a step to the clean end.

    falling: end with orders ..., 3, 2, 1. An estimate from pure noise, where lambda is -inf (flow matching with
    sigma_max=1), is on no polynomial in lambda and is not counted.
    """
    uncounted = 0 if math.isfinite(points.log_snrs[0]) else 1
    steps = np.arange(len(points))
    orders = np.minimum(np.maximum(steps + 1 - uncounted, 1), highest)
    if falling:
        orders = np.minimum(orders, len(points) - steps)
    if points.end.sigma == 0.0:
        orders[-1] = 1
    return orders


def adams_table(
    name: str,
    points: StepPoints,
    options: LambdaOptions,
    slots: int,
    predict: Weigh,
    correct: Weigh | None = None,
    *,
    data: bool = True,
    taus: Sequence[float] | None = None,
) -> Table:
    """The rows of a predictor on all steps of `points`, and of a corrector if there is one.

    slots: how many past estimates are kept. predict(i): the weights of the newest estimate, the one before, ... in the
    step from point i. correct(i): the weights of the estimate at point i, the one before, ... in the step that ended
    there; empty where it is not corrected. data: estimates of x_0, else of the noise. taus: the noise of every step,
    [steps]: 0 the probability flow, 1 the reverse SDE (Xue et al. 2023, arXiv:2309.05019); None = 0.
    """
    rows = TableBuilder(name, clip=options.clip, threshold=options.threshold)
    taus = [0.0] * len(points) if taus is None else taus
    h = np.diff(points.log_snrs)
    used = np.zeros(0)
    for i, (now, after) in enumerate(points.steps):
        estimate = X0 if data else now.epsilon(clipped=options.clipped)
        known = [estimate, *(H[(i - k) % slots] for k in range(1, slots + 1))]
        x = X
        if correct is not None and i > 0 and math.isfinite(h[i - 1]) and len(weights := correct(i)):
            change = np.zeros(slots + 1)
            change[: len(weights)] += weights
            change[1 : 1 + len(used)] -= used
            x = X + _factor(now, data, taus[i - 1]) * sum(w * m for w, m in zip(change, known, strict=True))
        if after.sigma == 0.0 and not data:
            # The limit: sigma_t e^h = alpha_t sigma_s / alpha_s.
            rows.evaluate(now, after.alpha / now.alpha * (x - now.sigma * estimate))
            break
        used = predict(i)
        kept, std = _kept_and_noise(now, after, float(h[i]), data, taus[i])
        x = kept * x + _factor(after, data, taus[i]) * sum(w * m for w, m in zip(used, known, strict=False))
        last = i + 1 == len(points)
        rows.evaluate(now, x + std * Z, slot=-1 if last else i % slots, history=None if last else estimate)
    return rows.table(initial_scale=points.initial_scale)


def _factor(after: Point, data: bool, tau: float) -> float:
    """What multiplies the integral of a step that ends at `after`."""
    return (1.0 + tau**2) * (after.alpha if data else -after.sigma)


def _kept_and_noise(now: Point, after: Point, h: float, data: bool, tau: float) -> tuple[float, float]:
    """What is left of x after a step, and the standard deviation of its noise."""
    if not data:
        return after.alpha / now.alpha, after.sigma * (
            tau * math.sqrt(math.expm1(2.0 * max(h, 0.0))) if tau else 0.0
        )
    if not tau:
        return after.sigma / now.sigma, 0.0
    kept = math.exp(-(tau**2) * h) * after.sigma / now.sigma
    return kept, after.sigma * math.sqrt(-math.expm1(-2.0 * tau**2 * max(h, 0.0)))
