"""Solvers of Adams type: the polynomial through the estimates of past steps is integrated over the next step.

lms, ipndm        estimates of the slope dz / dw over w = sigma / scale (`fastgen.diffusion.points`)
deis, unipc, sa   estimates of x_0 or epsilon over lambda = log(alpha / sigma) (`fastgen.diffusion.exponential`)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .exponential import FEW_STEPS, adams_table, adams_weights, step_orders
from .lambdas import LambdaOptions, lambda_points
from .points import StepPoints
from .processes import AnyProcess
from .schedule import NoiseSchedule
from .sigmas import SigmaOptions, sigma_points
from .table import H, Table, TableBuilder, X

MAX_ORDER = 4
# Adams-Bashforth of even steps, by order: weights of the newest estimate, the one before, ...
EVEN_WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
NOISY = (0.2, 0.8)  # shares of num_train_timesteps between which diffusers' SA-Solver adds noise by default


@dataclass(frozen=True)
class LMSOptions(SigmaOptions):
    """Options of `lms`: those of `SigmaOptions`, and

    solver_order: how many slopes a step uses, once there are so many (diffusers gives it to step(), as order)
    """

    solver_order: int = bounded(1, MAX_ORDER, default=MAX_ORDER)


def lms(schedule: AnyProcess, steps: int, options: LMSOptions) -> Table:
    """Linear multistep: Adams-Bashforth in sigma on uneven step points, as in k-diffusion's sample_lms.

    z' = z + the integral from w to w' of the polynomial through the last slopes. Slots: earlier slopes, by turns.
    """
    points, order = sigma_points(schedule, steps, options), options.solver_order
    rows = TableBuilder("lms", clip=options.clip, threshold=options.threshold)
    slots = order - 1
    for i, (now, after) in enumerate(points.steps):
        slope = now.slope(options.clipped)
        used = min(i + 1, order)
        slopes = [slope] + [H[(i - k) % slots] for k in range(1, used)]
        weights = lms_weights(points.levels[i - used + 1 : i + 1][::-1], after.level)
        z = X / now.scale + sum(w * s for w, s in zip(weights, slopes, strict=True))
        keep = slots > 0 and i + 1 < len(points)
        rows.evaluate(now, after.scale * z, slot=i % slots if keep else -1, history=slope if keep else None)
    return rows.table(initial_scale=points.initial_scale)


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights in [-1, 1]: 4 of them integrate polynomials up to degree 7 exactly; here are 3 at most.

    Made when first used: NumPy takes longer to import its polynomials than a small network takes for a step.
    """
    nodes, weights = np.polynomial.legendre.leggauss(MAX_ORDER)
    return nodes, weights


def lms_weights(levels: np.ndarray, end: float) -> list[float]:
    """Integrals from levels[0] to `end` of the Lagrange polynomials on `levels`, the newest first; [len(levels)]."""
    half = (end - levels[0]) / 2
    nodes, weights_of_nodes = _gauss_legendre()
    at = levels[0] + half * (nodes + 1.0)
    weights = []
    for j, own in enumerate(levels):
        polynomial = np.ones(MAX_ORDER)
        for other in np.delete(levels, j):
            polynomial *= (at - other) / (own - other)
        weights.append(float(half * (weights_of_nodes * polynomial).sum()))
    return weights


@dataclass(frozen=True)
class IPNDMOptions(SigmaOptions):
    """Options of `ipndm`: those of `SigmaOptions`, and

    solver_order: how many slopes the method uses, 1 to 4
    """

    solver_order: int = bounded(1, 4, default=4)


def ipndm(schedule: AnyProcess, steps: int, options: IPNDMOptions) -> Table:
    """iPNDM, Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv:2204.13902).

    Adams-Bashforth with the weights of even steps, begun at lower orders: one evaluation per step, order - 1 slots.
    z' = z + (w' - w) (55 d_0 - 59 d_1 + 37 d_2 - 9 d_3) / 24, d the slope dz / dw now and at the points before. `lms`
    has the weights of uneven steps.
    """
    points, slots = sigma_points(schedule, steps, options), max(options.solver_order - 1, 1)
    rows = TableBuilder("ipndm", clip=options.clip, threshold=options.threshold)
    for i, (now, after) in enumerate(points.steps):
        newest = now.slope(clipped=options.clipped)
        slopes = [newest, *(H[(i - k) % slots] for k in range(1, options.solver_order))]
        weights = EVEN_WEIGHTS[min(i + 1, options.solver_order) - 1]
        slope = sum(w * d for w, d in zip(weights, slopes, strict=False))
        x = after.scale * (X / now.scale + (after.level - now.level) * slope)
        kept = i + 1 < len(points) and options.solver_order > 1
        rows.evaluate(now, x, slot=i % slots if kept else -1, history=newest if kept else None)
    return rows.table(initial_scale=points.initial_scale)


@dataclass(frozen=True)
class DEISOptions(LambdaOptions):
    """Options of `deis`: those of `LambdaOptions`, and

    final_sigmas_type: diffusers' DEIS knows only sigma_min, the default
    solver_order: how many estimates of the noise the polynomial goes through, 1 to 3
    lower_order_final: take the last two steps at orders 2 and 1 if there are fewer than 15
    """

    final_sigmas_type: str = one_of("zero", "sigma_min", default="sigma_min")
    solver_order: int = bounded(1, 3, default=2)
    lower_order_final: bool = True


def deis(schedule: AnyProcess, steps: int, options: DEISOptions) -> Table:
    """DEIS, Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv:2204.13902).

    The paper's tAB-DEIS with a polynomial in lambda, where theirs is in t, as in diffusers; order - 1 slots.
    lambda = log(alpha / sigma) = -log(rho), rho being the paper's: its rho AB-DEIS has a polynomial in rho itself.
    """
    points = lambda_points(schedule, steps, options)
    falling = options.lower_order_final and steps < FEW_STEPS
    orders = step_orders(points, options.solver_order, falling=falling)

    def predict(i: int) -> np.ndarray:
        return adams_weights(points.log_snrs, i, i, orders[i], rate=-1.0)

    slots = max(options.solver_order - 1, 1)
    return adams_table("deis", points, options, slots, predict, data=False)


@dataclass(frozen=True)
class UniPCOptions(LambdaOptions):
    """Options of `unipc`: those of `LambdaOptions`, and

    solver_order: of the predictor, 1 to 4; the corrector adds one
    solver_type: the function B(h) of the paper, h (bh1) or e^h - 1 (bh2). It matters only in sums of two estimates
    predict_x0: remember estimates of x_0, else of the noise
    lower_order_final: end with orders ..., 3, 2, 1
    disable_corrector: the steps, counted from 0, whose end is not corrected
    sigma_min, sigma_max: ends of the Karras, exponential or beta sigmas, instead of the schedule's
    """

    solver_order: int = bounded(1, 4, default=2)
    solver_type: str = one_of("bh1", "bh2", default="bh2")
    predict_x0: bool = True
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = bounded(0, 100_000, default=(), max_items=100_000)
    sigma_min: float | None = bounded(1e-6, 1e6, default=None)
    sigma_max: float | None = bounded(1e-6, 1e6, default=None)


def unipc(schedule: AnyProcess, steps: int, options: UniPCOptions) -> Table:
    """UniPC-p, Zhao et al. 2023, "A Unified Predictor-Corrector Framework for Fast Sampling" (arXiv:2302.04867).

    Algorithms 1 (corrector) and 2 (predictor), one evaluation per step; order slots. The corrector of the last step
    would need an evaluation of its own and is left out, as in the paper. ConfigError for estimates of the noise that
    start from pure noise (flow matching with sigma_max=1).
    """
    points = lambda_points(schedule, steps, options, sigma_min=options.sigma_min, sigma_max=options.sigma_max)
    if not options.predict_x0 and points.starts[0].alpha == 0.0:
        raise ConfigError(
            "False divides by the share of x_0 in the state, which is 0 in pure noise; use predict_x0=True, or a "
            "sigma_max below 1",
            argument="predict_x0",
        )
    log_snrs, rate = points.log_snrs, 1.0 if options.predict_x0 else -1.0
    orders = step_orders(points, options.solver_order, falling=options.lower_order_final)

    def weights(step: int, newest: int, count: int) -> np.ndarray:
        """Of `count` estimates; with two of them the paper's a_1 = 1 / 2."""
        h = float(log_snrs[step + 1] - log_snrs[step])
        B = h if options.solver_type == "bh1" else -math.expm1(-rate * h) / rate
        return adams_weights(log_snrs, step, newest, count, rate, slope=h * B / 2)

    def predict(i: int) -> np.ndarray:
        return weights(i, i, orders[i])

    def correct(i: int) -> np.ndarray:
        if i - 1 + points.left_out in options.disable_corrector:
            return np.zeros(0)
        return weights(i - 1, i, orders[i - 1] + 1)

    slots = options.solver_order
    return adams_table("unipc", points, options, slots, predict, correct, data=options.predict_x0)


@dataclass(frozen=True)
class SAOptions(LambdaOptions):
    """Options of `sa`: those of `LambdaOptions`, and

    final_sigmas_type: diffusers' SA-Solver knows only sigma_min, the default
    predictor_order: how many estimates the predictor uses, 1 to 4
    corrector_order: how many the corrector uses, the newest one included, 1 to 4; 0 = no corrector
    algorithm_type: remember estimates of x_0 (data_prediction) or of the noise (noise_prediction)
    lower_order_final: end with orders ..., 3, 2, 1
    tau: how much noise: 0 = none, the probability flow; 1 = the reverse SDE's
    tau_start, tau_end: only in steps from times, as the network is told them, between the two. None: a fifth and four
        fifths of num_train_timesteps (200 and 800 of 1000, diffusers'); without timesteps no limit
    """

    final_sigmas_type: str = one_of("zero", "sigma_min", default="sigma_min")
    predictor_order: int = bounded(1, 4, default=2)
    corrector_order: int = bounded(0, 4, default=2)
    algorithm_type: str = one_of("data_prediction", "noise_prediction", default="data_prediction")
    lower_order_final: bool = True
    tau: float = bounded(0.0, 10.0, default=1.0)
    tau_start: float | None = bounded(-1e6, 1e6, default=None)
    tau_end: float | None = bounded(-1e6, 1e6, default=None)


def sa_solver(schedule: AnyProcess, steps: int, options: SAOptions) -> Table:
    """SA-Solver, Xue et al. 2023, "Stochastic Adams Solver for Fast Sampling of Diffusion Models" (arXiv:2309.05019).

    Algorithm 1: a stochastic Adams-Bashforth predictor, an Adams-Moulton corrector. As in the authors' code, with data
    prediction a sum of two estimates integrates u over a step as h^2 / 2 (their equivalent of UniPC's B_1(h)), which is
    far off where h (1 + tau^2) is large: few steps with much noise. Predictor and corrector of a step have the same
    noise, so that the corrector's row need not see it.
    """
    points = lambda_points(schedule, steps, options)
    data = options.algorithm_type == "data_prediction"
    taus = _taus(schedule, points, options)
    predicted = step_orders(points, options.predictor_order, falling=options.lower_order_final)
    corrected = step_orders(points, options.corrector_order - 1, falling=options.lower_order_final)

    def weights(step: int, newest: int, count: int) -> np.ndarray:
        h = float(points.log_snrs[step + 1] - points.log_snrs[step])
        rate = 1.0 + taus[step] ** 2 if data else -1.0
        return adams_weights(points.log_snrs, step, newest, count, rate, slope=h**2 / 2 if data else None)

    def predict(i: int) -> np.ndarray:
        return weights(i, i, predicted[i])

    def correct(i: int) -> np.ndarray:
        return weights(i - 1, i, corrected[i - 1] + 1)

    slots = max(options.predictor_order, options.corrector_order - 1)
    corrector = correct if options.corrector_order else None
    return adams_table("sa", points, options, slots, predict, corrector, data=data, taus=taus)


def _taus(schedule: AnyProcess, points: StepPoints, options: SAOptions) -> list[float]:
    """tau of every step. ConfigError for limits that leave noise nowhere."""
    low, high = -math.inf, math.inf
    if isinstance(schedule, NoiseSchedule):
        low, high = (share * schedule.num_train_timesteps for share in NOISY)
    low = low if options.tau_start is None else options.tau_start
    high = high if options.tau_end is None else options.tau_end
    taus = [options.tau if low <= point.time <= high else 0.0 for point in points.starts]
    if options.tau and not any(taus) and (options.tau_start, options.tau_end) != (None, None):
        told = sorted(point.time for point in points.starts)
        raise ConfigError(
            f"no step from a time between {low:.6g} and {high:.6g}, times here are {told[0]:.6g} "
            f"to {told[-1]:.6g}; tau={options.tau:g} has no effect; use tau=0, or other limits",
            argument="tau_start, tau_end",
        )
    return taus
