"""SA-Solver, Xue et al. 2023, "Stochastic Adams Solver for Fast Sampling of Diffusion Models" (arXiv:2309.05019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from .exponential import adams_orders, adams_table, adams_weights
from .lambdas import LambdaOptions, lambda_ladder
from .processes import AnyProcess
from .table import Table


@dataclass(frozen=True)
class SAOptions(LambdaOptions):
    """Options of `sa`: those of `LambdaOptions`, and

    final_sigmas_type: diffusers' SA-Solver knows only sigma_min, the default
    predictor_order: how many estimates the predictor uses, 1 to 4
    corrector_order: how many the corrector uses, the newest one included, 1 to 4; 0 = no corrector
    algorithm_type: remember estimates of x_0 (data_prediction) or of the noise (noise_prediction)
    lower_order_final: end with orders ..., 3, 2, 1
    tau, tau_start, tau_end: noise in the steps from timesteps between the two: 0 = none, the probability flow; 1 = the
        reverse SDE's
    """

    final_sigmas_type: str = one_of("zero", "sigma_min", default="sigma_min")
    predictor_order: int = bounded(1, 4, default=2)
    corrector_order: int = bounded(0, 4, default=2)
    algorithm_type: str = one_of("data_prediction", "noise_prediction", default="data_prediction")
    lower_order_final: bool = True
    tau: float = bounded(0.0, 10.0, default=1.0)
    tau_start: float = bounded(-1e6, 1e6, default=200.0)
    tau_end: float = bounded(-1e6, 1e6, default=800.0)


def sa_solver(schedule: AnyProcess, steps: int, options: SAOptions) -> Table:
    """Algorithm 1: a stochastic Adams-Bashforth predictor, an Adams-Moulton corrector.

    As in the authors' code, with data prediction a sum of two estimates integrates u over a step as h^2 / 2 (their
    equivalent of UniPC's B_1(h)). Predictor and corrector of a step have the same noise, so that the corrector's row
    need not see it.
    """
    ladder = lambda_ladder(schedule, steps, options)
    data = options.algorithm_type == "data_prediction"
    inside = [options.tau_start <= point.time <= options.tau_end for point in ladder.points]
    taus = [options.tau if noisy else 0.0 for noisy in inside]
    predictor = adams_orders(ladder, options.predictor_order)
    corrector = np.minimum(np.arange(steps) + 1, options.corrector_order)
    if options.lower_order_final:
        predictor = np.minimum(predictor, steps - np.arange(steps))
        corrector = np.minimum(corrector, steps + 2 - np.arange(steps))

    def weights(step: int, newest: int, count: int) -> np.ndarray:
        h = float(ladder.log_snrs[step + 1] - ladder.log_snrs[step])
        rate = 1.0 + taus[step] ** 2 if data else -1.0
        return adams_weights(ladder.log_snrs, step, newest, count, rate, slope=h**2 / 2 if data else None)

    def predict(i: int) -> np.ndarray:
        return weights(i, i, predictor[i])

    def correct(i: int) -> np.ndarray:
        return weights(i - 1, i, corrector[i])

    slots = max(options.predictor_order, options.corrector_order - 1)
    return adams_table(
        "sa",
        ladder,
        options,
        slots,
        predict,
        correct if options.corrector_order else None,
        data=data,
        taus=taus,
    )
