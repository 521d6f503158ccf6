"""UniPC, Zhao et al. 2023, "A Unified Predictor-Corrector Framework for Fast Sampling" (arXiv:2302.04867)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from .exponential import adams_orders, adams_table, adams_weights
from .lambdas import LambdaOptions, lambda_ladder
from .processes import AnyProcess
from .table import Table


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
    """UniPC-p: algorithms 1 (corrector) and 2 (predictor), one evaluation a step; order slots.

    The corrector of the last step would need an evaluation of its own and is left out, as in the paper.
    """
    ladder = lambda_ladder(schedule, steps, options, sigma_min=options.sigma_min, sigma_max=options.sigma_max)
    log_snrs, rate = ladder.log_snrs, 1.0 if options.predict_x0 else -1.0
    orders = adams_orders(ladder, options.solver_order, falling=options.lower_order_final)

    def weights(step: int, newest: int, count: int) -> np.ndarray:
        """Of `count` estimates; with two of them the paper's a_1 = 1 / 2."""
        h = float(log_snrs[step + 1] - log_snrs[step])
        B = h if options.solver_type == "bh1" else -math.expm1(-rate * h) / rate
        return adams_weights(log_snrs, step, newest, count, rate, slope=h * B / 2)

    def predict(i: int) -> np.ndarray:
        return weights(i, i, orders[i])

    def correct(i: int) -> np.ndarray:
        if i - 1 in options.disable_corrector:
            return np.zeros(0)
        return weights(i - 1, i, orders[i - 1] + 1)

    slots = options.solver_order
    return adams_table("unipc", ladder, options, slots, predict, correct, data=options.predict_x0)
