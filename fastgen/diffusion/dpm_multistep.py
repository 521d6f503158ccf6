"""DPM-Solver, multistep: one network evaluation per step, the earlier estimates kept.

Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095 (algorithm 2 and appendix B); for stochastic third order
k-diffusion's sample_dpmpp_3m_sde, which diffusers departs from by a sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .dpm_steps import ALGORITHMS, SOLVER_TYPES, check_end, estimate, noise_to, step_factors
from .exponential import FEW_STEPS, step_orders
from .lambdas import LambdaOptions, lambda_points
from .points import StepPoints
from .processes import AnyProcess
from .schedule import NoiseSchedule
from .table import H, Table, TableBuilder, X


@dataclass(frozen=True)
class MultistepOptions(LambdaOptions):
    """Options of `dpm++2m` and `dpm++3m`: those of `LambdaOptions`, and

    solver_type: how the difference of the last two estimates enters a second-order step, midpoint or heun
    lower_order_final: take the last step at first order, the one before it at second, if there are fewer than 15
    euler_at_final: take the last step at first order however many there are
    """

    solver_type: str = one_of(*SOLVER_TYPES, default="midpoint")
    lower_order_final: bool = True
    euler_at_final: bool = False


@dataclass(frozen=True)
class MultistepSDEOptions(MultistepOptions):
    """Options of `dpm++2m_sde` and `dpm++3m_sde`: those of `MultistepOptions`, and

    eta: how much fresh noise a step adds, 0 none; 1 follows the process backwards
    """

    eta: float = bounded(0.0, 100.0, default=1.0)


@dataclass(frozen=True)
class DPMMultistepOptions(MultistepOptions):
    """Options of `dpm_multistep`: those of `MultistepOptions`, and

    solver_order: 1 to 3
    algorithm_type: dpmsolver keeps estimates of the noise, dpmsolver++ of x_0; sde-... add noise (eta = 1)
    """

    solver_order: int = bounded(1, 3, default=2)
    algorithm_type: str = one_of(*ALGORITHMS, default="dpmsolver++")


def dpm_multistep(schedule: AnyProcess, steps: int, options: DPMMultistepOptions) -> Table:
    """diffusers' DPMSolverMultistepScheduler. Slots: solver_order - 1 earlier estimates."""
    algorithm = options.algorithm_type
    if algorithm == "sde-dpmsolver" and options.solver_order == 3:
        raise ConfigError(
            "3 is not defined for algorithm_type=sde-dpmsolver; use sde-dpmsolver++", argument="solver_order"
        )
    eta = 1.0 if algorithm.startswith("sde") else 0.0
    return _multistep("dpm_multistep", schedule, steps, options, options.solver_order, algorithm, eta)


def dpmpp_2m(schedule: AnyProcess, steps: int, options: MultistepOptions) -> Table:
    """DPM-Solver++(2M)."""
    return _multistep("dpm++2m", schedule, steps, options, 2)


def dpmpp_3m(schedule: AnyProcess, steps: int, options: MultistepOptions) -> Table:
    """DPM-Solver++ multistep of third order."""
    return _multistep("dpm++3m", schedule, steps, options, 3)


def dpmpp_2m_sde(schedule: AnyProcess, steps: int, options: MultistepSDEOptions) -> Table:
    """SDE-DPM-Solver++(2M)."""
    return _multistep("dpm++2m_sde", schedule, steps, options, 2, "sde-dpmsolver++", options.eta)


def dpmpp_3m_sde(schedule: AnyProcess, steps: int, options: MultistepSDEOptions) -> Table:
    """SDE-DPM-Solver++ multistep of third order."""
    return _multistep("dpm++3m_sde", schedule, steps, options, 3, "sde-dpmsolver++", options.eta)


def _multistep(
    name: str,
    schedule: AnyProcess,
    steps: int,
    options: MultistepOptions,
    order: int,
    algorithm: str = "dpmsolver++",
    eta: float = 0.0,
) -> Table:
    # diffusers rounds the timesteps of Karras' and log-SNR levels, but on the cosine schedule cuts them off.
    cosine = isinstance(schedule, NoiseSchedule) and schedule.beta_schedule == "squaredcos_cap_v2"
    points = lambda_points(schedule, steps, options, rounded=not cosine)
    check_end(algorithm, points)
    falling = options.lower_order_final and steps < FEW_STEPS
    orders = step_orders(points, order, falling=falling)
    if options.euler_at_final:
        orders[-1] = 1
    slots = order - 1
    rows = TableBuilder(name, clip=options.clip, threshold=options.threshold)
    for i, (now, after) in enumerate(points.steps):
        newest = estimate(now, algorithm, options.clipped)
        earlier = [H[(i - k) % slots] for k in range(1, orders[i])]
        differences = backward_differences(points, i, [newest, *earlier])
        kind = "heun" if orders[i] == 3 else options.solver_type
        linear, weights = step_factors(now, after, algorithm, kind, eta)
        x = linear * X + sum(c * d for c, d in zip(weights, differences, strict=False))
        x = x + noise_to(now, after, algorithm, eta)
        keep = any(orders[i + k] > k for k in range(1, slots + 1) if i + k < len(points))
        rows.evaluate(now, x, slot=i % slots if keep else -1, history=newest if keep else None)
    return rows.table(initial_scale=points.initial_scale)


def backward_differences(points: StepPoints, i: int, estimates: list[np.ndarray]) -> list[np.ndarray]:
    """D0, D1, D2 at step i from the estimates at its start and those before it, the newest first.

    Divided differences in lambda times powers of the step h, extrapolated from the newest two or three estimates
    (Lu et al. 2022, arXiv:2211.01095, appendix B).
    """
    if len(estimates) == 1:
        return estimates
    lambdas = points.log_snrs
    h, h0 = lambdas[i + 1] - lambdas[i], lambdas[i] - lambdas[i - 1]
    first = h / h0 * (estimates[0] - estimates[1])
    if len(estimates) == 2:
        return [estimates[0], first]
    h1 = lambdas[i - 1] - lambdas[i - 2]
    bend = first - h / h1 * (estimates[1] - estimates[2])
    return [estimates[0], first + h0 / (h0 + h1) * bend, h / (h0 + h1) * bend]
