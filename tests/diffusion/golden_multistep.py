"""UniPC, DEIS, PNDM, SA-Solver, LCM, TCD and consistency sampling: which runs are compared, what diffusers loses."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from fastgen.diffusion import SOLVERS, NoiseSchedule, solver_table
from fastgen.diffusion.consistency_model import ConsistencyModel
from fastgen.diffusion.lambdas import lambda_points
from fastgen.diffusion.processes import AnyProcess
from fastgen.diffusion.sigmas import sigma_points

from .diffusers_oracle import Network, basis_run, deviation, table_matrix
from .golden import PREDICTIONS, SCHEDULES, SPACINGS, TOLERANCE, Measured, product
from .multistep_oracle import matrix_deviation, trajectories

STEPS = (1, 2, 7, 10, 50)
ADAMS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
AS_DIFFUSERS: dict[str, Any] = {"as_diffusers": True}
SPREADS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "unipc": [
        {},
        *product(
            solver_order=(1, 2, 3, 4),
            solver_type=("bh1", "bh2"),
            predict_x0=(True, False),
            lower_order_final=(True, False),
            final_sigmas_type=("sigma_min",),
        ),
        *product(solver_order=(1, 3, 4), final_sigmas_type=("zero",)),
        {"disable_corrector": (0, 2, 5)},
        *product(
            solver_order=(2, 3),
            disable_corrector=((1,),),
            predict_x0=(False,),
            final_sigmas_type=("sigma_min",),
        ),
        *({key: True, "final_sigmas_type": end} for key in SPREADS for end in ("zero", "sigma_min")),
        {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 20.0, "solver_order": 3},
        {"use_beta_sigmas": True, "sigma_min": 0.05, "final_sigmas_type": "sigma_min"},
    ],
    "deis": [
        {},
        *product(solver_order=(1, 2, 3), lower_order_final=(True, False)),
        *({key: True, "solver_order": 3} for key in SPREADS),
    ],
    "plms": [AS_DIFFUSERS, {**AS_DIFFUSERS, "set_alpha_to_one": True}],
    "pndm": [AS_DIFFUSERS, {**AS_DIFFUSERS, "set_alpha_to_one": True}],
    "sa": [
        {},
        *product(
            predictor_order=(1, 2, 3, 4),
            corrector_order=(1, 2, 3, 4),
            algorithm_type=("data_prediction", "noise_prediction"),
        ),
        {"lower_order_final": False, "predictor_order": 3, "corrector_order": 4},
        *({key: True} for key in SPREADS),
    ],
    "lcm": [{}, {"timestep_scaling": 1.0}, {"original_inference_steps": 100}],
    "tcd": [{}, {"eta": 0.0}, {"eta": 0.6}, {"eta": 1.0, "original_inference_steps": 100}],
    "consistency": [{"clip_sample": False}, {"clip_sample": False, "s_noise": 1.007}],
}


def order(name: str, options: dict[str, Any]) -> int:
    """How many estimates the polynomial of a step may go through."""
    if name == "sa":
        return max(options.get("predictor_order", 2), options.get("corrector_order", 2))
    return options.get("solver_order", 2) + (name == "unipc")


def tolerance(name: str, process: AnyProcess, steps: int, options: dict[str, Any]) -> float:
    """1e-12, or what diffusers' own rounding costs, where steps are short and the order is high.

    Its integrals of the k-th power of u over a step of length h come as differences of numbers near 1 (UniPC), or of
    powers of lambda itself (DEIS, SA-Solver), divided by h^k. Ours lose nothing, see test_exponential.py.
    """
    if name not in ("unipc", "deis", "sa") or steps == 1:
        return TOLERANCE
    points = lambda_points(process, steps, SOLVERS[name].check(options))
    log_snrs = points.log_snrs[np.isfinite(points.log_snrs)]
    h = np.diff(log_snrs)
    size = 1.0 if name == "unipc" else 1.0 + np.abs(log_snrs).max()
    lost = (size / h[h > 1e-9].min(initial=1.0)) ** (order(name, options) - 1)
    return max(TOLERANCE, 4 * np.finfo(float).eps * lost)


def processes(name: str, options: dict[str, Any]) -> Iterator[tuple[AnyProcess, int, dict[str, Any]]]:
    """(process, steps, options) of every run that diffusers' scheduler can do."""
    if name == "consistency":
        yield from ((ConsistencyModel(), steps, options) for steps in (1, 2, 7, 10, 40))
        return
    spacings = ("leading",) if name in ("lcm", "tcd") else SPACINGS
    for prediction, spacing, steps in itertools.product(PREDICTIONS, spacings, STEPS):
        if (prediction == "sample" and name in ("plms", "pndm")) or (steps < 4 and name == "pndm"):
            continue
        if steps == 50 and spacing != "leading" and SPACINGS.index(spacing) != PREDICTIONS.index(prediction):
            continue  # what a network predicts does not depend on how many steps there are, and these runs take long
        to_least = options.get("final_sigmas_type", "zero" if name == "unipc" else "sigma_min") == "sigma_min"
        if steps == 1 and to_least and any(options.get(key) for key in SPREADS):
            continue  # diffusers takes a step of no length from the largest sigma, and noise comes out
        chosen = options if name in ("lcm", "tcd") else {**options, "timestep_spacing": spacing}
        yield NoiseSchedule(prediction_type=prediction), steps, chosen


PATHS: list[tuple[str, dict[str, Any]]] = [
    ("unipc", {"solver_order": 3}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("deis", {"solver_order": 3}),
    ("sa", {"predictor_order": 3}),
    ("lcm", {}),
    *((name, AS_DIFFUSERS) for name in ("plms", "pndm")),
    ("tcd", {"eta": 0.5}),
    ("consistency", {}),
]
CLIPPED = [
    (n, o) for n, o in PATHS if n in ("deis", "sa", "lcm") or o == {"solver_order": 3}
]  # diffusers can


def measure(name: str) -> Measured:
    """Every run whose tolerance is 1e-12, and the trajectories, clipped where diffusers can."""
    matrices = [
        matrix_deviation(name, process, steps, **chosen)
        for options in OPTIONS[name]
        for process, steps, chosen in processes(name, options)
        if tolerance(name, process, steps, chosen) == TOLERANCE
    ]
    paths: list[float] = []
    for options in [o for n, o in PATHS if n == name]:
        clip = 0.7 if (name, options) in CLIPPED else None
        process = ConsistencyModel() if name == "consistency" else NoiseSchedule(**SCHEDULES["scaled"])
        paths += [
            deviation(*trajectories(name, process, steps, clip, **options))
            for steps in (7, 12)
            if tolerance(name, process, steps, options) == TOLERANCE
        ]
    return Measured(matrices, paths)


def adams_bashforth(
    process: AnyProcess,
    steps: int,
    network: Network,
    x: Tensor,
    noise: Any = None,
    *,
    solver_order: int = 4,
    **options: Any,
) -> Tensor:
    """`ipndm` as a straight loop: Adams-Bashforth on dz / dw = (z - x_0) / w."""
    points = sigma_points(process, steps, SOLVERS["ipndm"].check(options))
    z, past = x / points.starts[0].scale, []
    for now, after in points.steps:
        x = now.scale * z
        x0 = now.x0[0] * x + now.x0[1] * network(now.input_scale * x, now.time)
        past.append((z - x0) / now.level)
        weights = ADAMS[min(len(past), solver_order) - 1]
        z = z + (after.level - now.level) * sum(w * d for w, d in zip(weights, past[::-1], strict=False))
    return after.scale * z


def measure_ipndm() -> Measured:
    """Against the loop."""
    matrices = []
    for prediction, steps, order_ in itertools.product(PREDICTIONS, STEPS, (1, 2, 3, 4)):
        process = NoiseSchedule(prediction_type=prediction)
        table = solver_table("ipndm", process, steps, solver_order=order_)
        loop = functools.partial(adams_bashforth, process, steps, solver_order=order_)
        matrices.append(deviation(table_matrix(table)[-1:], basis_run(loop, steps)[-1:]))
    return Measured(matrices, [], "a loop")


MEASURES: dict[str, Callable[[], Measured]] = {
    **{name: functools.partial(measure, name) for name in OPTIONS},
    "ipndm": measure_ipndm,
}
