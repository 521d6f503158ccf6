"""Ancestral and SDE solvers against plain loops in sigma, with the options that diffusers lacks."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from fastgen.diffusion import EDM, SOLVERS, VESDE, FlowMatching, NoiseSchedule, SubVPSDE, Table, run
from fastgen.diffusion.lambdas import lambda_points
from fastgen.diffusion.processes import AnyProcess
from fastgen.diffusion.sigmas import SigmaOptions, sigma_points

from .diffusers_oracle import deviation
from .golden import SCHEDULES, Golden, Measured, matrix_deviation, measure, product, trajectories
from .golden_cases import middle_of_step, widest_step
from .k_diffusion_formulas import k_diffusion_run, sde_multistep_run

SPREAD = [
    {},
    {"use_karras_sigmas": True, "rho": 5.0},
    {"use_polyexponential_sigmas": True},
    {"use_polyexponential_sigmas": True, "rho": 0.7},
]
NOISE = [{"eta": 0.0}, {"eta": 0.4}, {"eta": 1.0}, {"eta": 1.3, "s_noise": 1.01}]
ANCESTRAL = [{"as_diffusers": True} | a | b for a, b in itertools.product(SPREAD, NOISE)]


def _golden(name: str) -> Golden:
    lost = middle_of_step(name) if name == "dpm2_a" else widest_step(name)
    paths = [{"as_diffusers": True} | noise for noise in NOISE]
    return Golden(ANCESTRAL, paths, spacings=(), lost=lost, other=k_diffusion_run, against="formulas")


GOLDEN = {name: _golden(name) for name in ("euler_a", "dpm2_a", "dpm++2s_a", "dpm++sde")} | {
    name: Golden(
        product(eta=(0.0, 0.3, 1.0), solver_type=("midpoint", "heun")),
        [{"eta": 0.3}],
        spacings=(),
        other=sde_multistep_run,
        against="formulas",
    )
    for name in ("dpm++2m_sde", "dpm++3m_sde")
}
MEASURES: dict[str, Callable[[], Measured]] = {
    "dpm++2s_a": functools.partial(measure, "dpm++2s_a", GOLDEN["dpm++2s_a"], steps=(2, 7, 10, 50))
}


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", GOLDEN)
def test_same_as_the_loop(name: str, prediction: str) -> None:
    golden = GOLDEN[name]
    for kind, steps in itertools.product(("linear", "scaled"), (2, 7, 16)):
        schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES[kind])
        for options in golden.options if steps == 7 else golden.options[:2]:
            found = matrix_deviation(golden, name, schedule, steps, options)
            assert found <= golden.tolerance(schedule, steps, options), f"{kind} {steps} {options}: {found}"
        for options in golden.paths if steps == 7 else ():
            options = options | {"clip_sample": True, "clip_sample_range": 0.5}
            found = deviation(*trajectories(golden, name, schedule, steps, options))
            assert found <= golden.tolerance(schedule, steps, options), f"{kind} {steps} {options}: {found}"


PROCESSES = {
    "flow": FlowMatching(prediction_type="sample"),
    "edm": EDM(prediction_type="sample"),
    "ve": VESDE(),
    "subvp": SubVPSDE(),
    "discrete": NoiseSchedule(prediction_type="sample"),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", ["euler_a", "dpm2_a", "dpm++2s_a", "dpm++sde", "dpm++2m_sde", "dpm++3m_sde"])
def test_noise_has_its_level_in_every_process(name: str, process: AnyProcess) -> None:
    """With a perfect network and x_0 = 0 the state is a sum of independent normals, and its variance must be sigma^2.

    So it is at every step point, whatever the process, eta or number of steps.
    """
    solver = SOLVERS[name]
    for eta in (0.0, 0.6, 1.0):
        options = solver.check({"eta": eta})
        points = (sigma_points if isinstance(options, SigmaOptions) else lambda_points)(process, 9, options)
        table = solver(process, 9, eta=eta)
        seen: list[np.ndarray] = []

        def perfect(
            x: np.ndarray, t: float, seen: list[np.ndarray] = seen, table: Table = table
        ) -> np.ndarray:
            row = len(seen)
            seen.append(x / table.input_scale[row])
            # F for which p x + q F = 0: x_0 = 0 whatever the network predicts.
            return -table.p[row] / table.q[row] * seen[-1]

        units = np.eye(1 + len(table))
        end = run(table, perfect, table.initial_scale * units[0], units[1:])
        at = [int(np.flatnonzero(table.time == point.time)[0]) for point in points.starts]
        found = [float((seen[row] ** 2).sum()) for row in at]
        first = found[0] / points.starts[0].sigma ** 2  # the start is not always sigma: 1 in discrete time
        assert first == pytest.approx(1.0, rel=1e-3)
        kept = [point.sigma**2 for point in points.starts]
        np.testing.assert_allclose(found, kept, rtol=max(1e-9, 2 * abs(first - 1.0)), err_msg=f"eta {eta}")
        assert np.abs(end).max() < 1e-9


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_3m_sde_with_the_options_that_make_it_that_of_k_diffusion(eta: float) -> None:
    """sample_dpmpp_3m_sde as a loop in lambda = -log(sigma): third order from the third step on, to the last but one.

    Its second order weighs the difference by phi_2, and the network is told times between whole ones.
    """
    sigmas = (14.0, 6.0, 2.5, 1.1, 0.5, 0.2, 0.07)
    schedule = NoiseSchedule(**SCHEDULES["scaled"])
    options = {"sigmas": sigmas, "lower_order_final": False, "solver_type": "heun", "eta": eta}
    table = SOLVERS["dpm++3m_sde"](schedule, **options)
    rng = np.random.default_rng(0)
    x, *noise = rng.normal(size=(1 + len(sigmas), 2, 3, 4, 4))

    def network(state: np.ndarray, t: float) -> np.ndarray:
        return np.tanh(1.3 * state + 0.01 * t)

    y = x * math.hypot(1.0, sigmas[0]) * table.initial_scale
    kept: list[np.ndarray] = []
    lambdas = [-math.log(sigma) for sigma in sigmas]
    for i, sigma in enumerate(sigmas):
        time = float(schedule.times(np.array([sigma]))[0])
        kept.insert(0, y - sigma * network(y / math.hypot(1.0, sigma), time))
        if i + 1 == len(sigmas):
            break
        h = lambdas[i + 1] - lambdas[i]
        g = h * (1.0 + eta)
        y = math.exp(-g) * y - math.expm1(-g) * kept[0]
        phi_2 = math.expm1(-g) / g + 1.0
        if i == 1:
            y = y + phi_2 * (kept[0] - kept[1]) * h / (lambdas[1] - lambdas[0])
        elif i > 1:
            r0, r1 = ((lambdas[i - k] - lambdas[i - k - 1]) / h for k in range(2))
            d0, d1 = (kept[0] - kept[1]) / r0, (kept[1] - kept[2]) / r1
            bend = (d0 - d1) / (r0 + r1)
            y = y + phi_2 * (d0 + bend * r0) - (phi_2 / g - 0.5) * bend
        y = y + sigmas[i + 1] * math.sqrt(-math.expm1(-2.0 * h * eta)) * noise[i]
    found = run(table, network, table.initial_scale * x, noise)
    assert np.abs(found - kept[0]).max() <= 1e-12 * np.abs(kept[0]).max()
    default = SOLVERS["dpm++3m_sde"](schedule, sigmas=sigmas, eta=eta)
    assert np.abs(run(default, network, table.initial_scale * x, noise) - kept[0]).max() > 1e-4
