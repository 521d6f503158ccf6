"""DPM-Solver, singlestep: the evaluations of a step lie within it, and nothing is kept from one step to the next.

Lu et al. 2022, arXiv:2206.00927 (algorithms 1 and 2 of the appendix) and arXiv:2211.01095 (2S, 3S), between the
step points as in diffusers: a step of order 3 spans three of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .dpm_steps import SOLVER_TYPES, check_end, estimate, noise_to, step_factors
from .lambdas import LambdaOptions, lambda_points
from .points import Point
from .processes import AnyProcess
from .table import H, Table, TableBuilder, X

SINGLESTEP_ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")


@dataclass(frozen=True)
class SinglestepOptions(LambdaOptions):
    """Options of `dpm++2s` and `dpm++3s`: those of `LambdaOptions`, and

    solver_type: how the differences of the estimates within a step enter, midpoint or heun
    lower_order_final: end with steps of lower order; where `steps` is no multiple of the order, and where the run ends
        at the clean sample, it does so anyway
    """

    solver_type: str = one_of(*SOLVER_TYPES, default="midpoint")
    lower_order_final: bool = False


@dataclass(frozen=True)
class DPMSinglestepOptions(SinglestepOptions):
    """Options of `dpm_singlestep`: those of `SinglestepOptions`, and

    solver_order: 1 to 3
    algorithm_type: dpmsolver keeps estimates of the noise, dpmsolver++ of x_0; sde-dpmsolver++ adds noise (order 1
        and 2)
    """

    solver_order: int = bounded(1, 3, default=2)
    algorithm_type: str = one_of(*SINGLESTEP_ALGORITHMS, default="dpmsolver++")


def dpm_singlestep(schedule: AnyProcess, steps: int, options: DPMSinglestepOptions) -> Table:
    """diffusers' DPMSolverSinglestepScheduler. `steps` counts network evaluations."""
    return _singlestep(
        "dpm_singlestep", schedule, steps, options, options.solver_order, options.algorithm_type
    )


def dpmpp_2s(schedule: AnyProcess, steps: int, options: SinglestepOptions) -> Table:
    """DPM-Solver++(2S)."""
    return _singlestep("dpm++2s", schedule, steps, options, 2)


def dpmpp_3s(schedule: AnyProcess, steps: int, options: SinglestepOptions) -> Table:
    """DPM-Solver++(3S)."""
    return _singlestep("dpm++3s", schedule, steps, options, 3)


def evaluation_counts(steps: int, order: int, lower_order_final: bool, to_zero: bool) -> list[int]:
    """How many evaluations each step takes, that is its order: their sum is `steps`."""
    if order == 1:
        return [1] * steps
    whole, rest = divmod(steps, order)
    if rest:
        counts = [order] * whole + [rest]
    elif lower_order_final or to_zero:  # a last full step would end at lower order anyway
        counts = [order] * (whole - 1) + [order - 1, 1]
    else:
        counts = [order] * whole
    if to_zero and counts[-1] > 1:  # only first order reaches the clean end
        counts[-1:] = [1] * counts[-1]
    return counts


def _singlestep(
    name: str,
    schedule: AnyProcess,
    steps: int,
    options: SinglestepOptions,
    order: int,
    algorithm: str = "dpmsolver++",
) -> Table:
    """Rows of all steps. One slot: what the end of the step takes of what is known so far."""
    eta = 1.0 if algorithm.startswith("sde") else 0.0
    if eta and order == 3:
        raise ConfigError(
            "3 is not available with algorithm_type=sde-dpmsolver++: noise would have to be kept "
            "apart from two states at once; use solver_order=2, or dpm++3m_sde",
            argument="solver_order",
        )
    points = lambda_points(schedule, steps, options)
    check_end(algorithm, points)
    counts = evaluation_counts(len(points), order, options.lower_order_final, points.end.sigma == 0.0)
    rows = TableBuilder(name, clip=options.clip, threshold=options.threshold)
    start = 0
    for count in counts:
        spanned = points.all[start : start + count + 1]
        _rows_of_step(rows, spanned, algorithm, options.solver_type, eta, options.clipped)
        start += count
    return rows.table(initial_scale=points.initial_scale)


def _rows_of_step(
    rows: TableBuilder,
    spanned: tuple[Point, ...],
    algorithm: str,
    solver_type: str,
    eta: float,
    clipped: bool,
) -> None:
    """One step, from spanned[0] to spanned[-1]: a row at every point but the last."""
    m = [estimate(point, algorithm, clipped) for point in spanned[:-1]]
    noise = [noise_to(spanned[0], point, algorithm, eta) for point in spanned[1:]]
    linear, gain = _update(spanned[:2], algorithm, solver_type, eta)
    x = linear * X + gain[0] * m[0] + noise[0]
    if len(m) == 1:
        rows.evaluate(spanned[0], x)
        return
    linear_2, gain_2 = _update(spanned[:3], algorithm, solver_type, eta)
    if len(m) == 2:
        rows.evaluate(spanned[0], x, slot=0, history=linear_2 * X + gain_2[0] * m[0])
        rows.evaluate(spanned[1], H[0] + gain_2[1] * m[1] + noise[1])
        return
    # Two states at once, of the second row's end and of the third's: both are found from x and the first estimate.
    linear_3, gain_3 = _update(spanned, algorithm, solver_type, eta)
    rows.evaluate(spanned[0], x, slot=0, history=m[0])
    start = (X - gain[0] * H[0]) / linear
    second = linear_2 * start + gain_2[0] * H[0] + gain_2[1] * m[1]
    third = linear_3 * start + gain_3[0] * H[0] + gain_3[1] * m[1]
    rows.evaluate(spanned[1], second, slot=0, history=third)
    rows.evaluate(spanned[2], H[0] + gain_3[2] * m[2])


def _update(
    spanned: tuple[Point, ...], algorithm: str, solver_type: str, eta: float
) -> tuple[float, list[float]]:
    """From spanned[0] to spanned[-1]: the factors of x and of the estimates at spanned[:-1], one to three of them."""
    start, *between, end = (point.log_snr for point in spanned)
    r = [(log_snr - start) / (end - start) for log_snr in between]
    m = np.eye(len(spanned) - 1)
    if len(m) == 1:
        differences = [m[0]]
    elif len(m) == 2:
        differences = [m[0], (m[1] - m[0]) / r[0]]
    else:
        first, second = (m[1] - m[0]) / r[0], (m[2] - m[0]) / r[1]
        differences = [m[0], second]
        if solver_type == "heun":
            bend = (second - first) / (r[1] - r[0])
            differences = [m[0], first - r[0] * bend, 2.0 * bend]
        solver_type = "heun"  # both kinds of third order weigh differences with c1
    linear, weights = step_factors(spanned[0], spanned[-1], algorithm, solver_type, eta)
    gains = sum(c * d for c, d in zip(weights, differences, strict=False))
    return linear, list(gains)
