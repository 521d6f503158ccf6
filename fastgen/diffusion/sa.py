"""SA-Solver, Xue et al. 2023, "Stochastic Adams Solver for Fast Sampling of Diffusion Models" (arXiv:2309.05019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .exponential import adams_orders, adams_table, adams_weights
from .lambdas import LambdaOptions, lambda_ladder
from .points import Ladder
from .processes import AnyProcess
from .schedule import NoiseSchedule
from .table import Table

NOISY = (0.2, 0.8)  # shares of num_train_timesteps between which diffusers' default adds noise


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
    """Algorithm 1: a stochastic Adams-Bashforth predictor, an Adams-Moulton corrector.

    As in the authors' code, with data prediction a sum of two estimates integrates u over a step as h^2 / 2 (their
    equivalent of UniPC's B_1(h)), which is far off where h (1 + tau^2) is large: few steps with much noise. Predictor
    and corrector of a step have the same noise, so that the corrector's row need not see it.
    """
    ladder = lambda_ladder(schedule, steps, options)
    data = options.algorithm_type == "data_prediction"
    taus = _taus(schedule, ladder, options)
    predictor = adams_orders(ladder, options.predictor_order, falling=options.lower_order_final)
    corrector = np.minimum(np.arange(steps) + 1, options.corrector_order)
    if options.lower_order_final:
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


def _taus(schedule: AnyProcess, ladder: Ladder, options: SAOptions) -> list[float]:
    """tau of every step. ConfigError for limits that leave noise nowhere."""
    low, high = -math.inf, math.inf
    if isinstance(schedule, NoiseSchedule):
        low, high = (share * schedule.num_train_timesteps for share in NOISY)
    low = low if options.tau_start is None else options.tau_start
    high = high if options.tau_end is None else options.tau_end
    taus = [options.tau if low <= point.time <= high else 0.0 for point in ladder.points]
    if options.tau and not any(taus) and (options.tau_start, options.tau_end) != (None, None):
        told = sorted(point.time for point in ladder.points)
        raise ConfigError(
            f"no step from a time between {low:.6g} and {high:.6g}, times here are {told[0]:.6g} "
            f"to {told[-1]:.6g}; tau={options.tau:g} has no effect; use tau=0, or other limits",
            argument="tau_start, tau_end",
        )
    return taus
