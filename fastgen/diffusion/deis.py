"""DEIS, Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv:2204.13902)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from .exponential import adams_orders, adams_table, adams_weights
from .lambdas import LambdaOptions, lambda_ladder
from .processes import AnyProcess
from .table import Table

FEW_STEPS = 15  # below this many steps the last two are taken at lower order


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
    """The paper's tAB-DEIS with a polynomial in lambda, where theirs is in t, as in diffusers; order - 1 slots.

    lambda = log(alpha / sigma) = -log(rho), rho being the paper's: its rho AB-DEIS has a polynomial in rho itself.
    """
    ladder = lambda_ladder(schedule, steps, options)
    orders = adams_orders(ladder, options.solver_order)
    if options.lower_order_final and steps < FEW_STEPS:
        orders[-2:] = np.minimum(orders[-2:], [2, 1][-len(orders[-2:]) :])

    def predict(i: int) -> np.ndarray:
        return adams_weights(ladder.log_snrs, i, i, orders[i], rate=-1.0)

    slots = max(options.solver_order - 1, 1)
    return adams_table("deis", ladder, options, slots, predict, data=False)
