"""Karras et al. 2022: the process, its levels, and Heun and Euler with churn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import EDM, SOLVERS, FlowMatching, NoiseSchedule, SubVPSDE, process_from_config, run
from fastgen.diffusion.sigmas import SigmaOptions, sigma_points
from fastgen.errors import ConfigError
from tests.refusals import refused

from .diffusers_oracle import continuous_run, table_matrix
from .diffusers_oracle import deviation as matrix_deviation
from .process_oracles import SHAPE, deviation, network
from .process_oracles import runs as both

CHURN = {
    "S_churn": 40.0,
    "S_tmin": 0.05,
    "S_tmax": 50.0,
    "S_noise": 1.003,
}  # the paper's ImageNet-64 settings


@pytest.mark.parametrize("steps", [1, 2, 7, 18])
@pytest.mark.parametrize("options", [{}, CHURN, {"S_churn": 1e3}], ids=["none", "paper", "most"])
@pytest.mark.parametrize("name", ["heun", "euler"])
def test_sampler_is_algorithm_2(name: str, options: dict[str, Any], steps: int) -> None:
    assert deviation(name, EDM(), steps, **options) <= 1e-12


def test_churn_begins_with_more_noise_and_adds_some() -> None:
    table = SOLVERS["heun"](EDM(), 18, **{**CHURN, "S_tmax": 100.0})
    gamma = 40.0 / 18
    assert table.initial_scale == pytest.approx(
        math.hypot(80.0, 1.003 * 80.0 * math.sqrt((1 + min(gamma, 2**0.5 - 1)) ** 2 - 1))
    )
    assert table.stochastic
    assert not SOLVERS["heun"](EDM(), 18).stochastic
    ours, _ = both("heun", EDM(), 18, **CHURN)
    plain, _ = both("heun", EDM(), 18)
    assert np.abs(ours - plain).max() > 1e-3


OF_RATIO: list[tuple[Any, Callable[[np.ndarray], np.ndarray]]] = [  # sigma of r = sigma / alpha
    (EDM(prediction_type="sample"), lambda r: r),
    (FlowMatching(prediction_type="sample"), lambda r: 1.0 / (1.0 + 1.0 / r)),
    (NoiseSchedule(prediction_type="sample"), lambda r: r / np.hypot(1.0, r)),
    (SubVPSDE(prediction_type="sample"), lambda r: 2.0 * r / (np.hypot(2.0, r) + r)),
]


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize(("process", "sigma"), OF_RATIO, ids=[type(p).__name__ for p, _ in OF_RATIO])
def test_churn_keeps_to_any_process(
    name: str, process: Any, sigma: Callable[[np.ndarray], np.ndarray]
) -> None:
    """With x_0 = 0 and a network that knows it, the state is noise of the level that the network is told.

    Churn brings in fresh noise, and the sum of the squares of all coefficients stays sigma^2.
    """
    table = SOLVERS[name](process, 8, S_churn=2.0)
    assert table.stochastic
    units = np.eye(1 + len(table))[:, None, None, :]
    states: list[np.ndarray] = []

    def network(x: np.ndarray, t: float) -> np.ndarray:
        states.append(x / table.input_scale[len(states)])
        return np.zeros_like(x)

    run(table, network, table.initial_scale * units[0], list(units[1:]))
    # Heun's second slope divides by the level at a step's end, up to 2000 times smaller here: 2000 roundings of 1.
    found = [np.linalg.norm(x) for x in states]
    np.testing.assert_allclose(found, sigma(table.sigma), rtol=1e-12, atol=2000 * np.finfo(float).eps)


def test_levels_are_equation_5() -> None:
    points = sigma_points(EDM(), 18, SigmaOptions())
    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(points.levels, [*want, 0.0], rtol=1e-13)
    np.testing.assert_allclose([p.time for p in points.starts], np.log(want) / 4, rtol=1e-12)


def test_denoiser_networks_are_used_as_they_are() -> None:
    """prediction_type sample: D(x; sigma), which F with its preconditioning must equal."""

    def d(x: np.ndarray, sigma: float) -> np.ndarray:
        data = 0.5
        scale = math.sqrt(sigma**2 + data**2)
        return data**2 / scale**2 * x + sigma * data / scale * network(x / scale, math.log(sigma) / 4)

    raw, wrapped = (SOLVERS["heun"](EDM(prediction_type=kind), 12, S_churn=4.0) for kind in ("edm", "sample"))
    np.testing.assert_allclose(raw.input_scale[0], 1 / math.hypot(80.0 * (1 + 4 / 12), 0.5), rtol=1e-13)
    assert np.all(wrapped.input_scale == 1.0)
    rng = np.random.default_rng(0)
    x, noise = raw.initial_scale * rng.normal(size=SHAPE), list(rng.normal(size=(len(raw), *SHAPE)))
    np.testing.assert_allclose(run(wrapped, d, x, noise), run(raw, network, x, noise), rtol=0, atol=1e-11)


def test_v_prediction_is_the_negative() -> None:
    positive, negative = (EDM(prediction_type=kind).point(3.0) for kind in ("edm", "v_prediction"))
    assert negative.x0 == (positive.x0[0], -positive.x0[1])
    assert negative.noise == (positive.noise[0], -positive.noise[1])


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("prediction", ["edm", "v_prediction"])
def test_whole_runs_equal_diffusers(solver: str, sigma_schedule: str, prediction: str) -> None:
    for steps in (2, 7, 20):
        scheduler, theirs = continuous_run(
            "edm_euler" if solver == "euler" else "edm_dpmsolver_multistep",
            "EDMEulerScheduler" if solver == "euler" else "EDMDPMSolverMultistepScheduler",
            steps,
            sigma_schedule=sigma_schedule,
            prediction_type="epsilon" if prediction == "edm" else prediction,
        )
        table = SOLVERS[solver](EDM(sigma_schedule=sigma_schedule, prediction_type=prediction), steps)
        assert matrix_deviation(table_matrix(table), theirs) <= 1e-12
        np.testing.assert_allclose(table.time, scheduler.timesteps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "about"),
    [
        ({"sigma_min": 5.0, "sigma_max": 2.0}, ("sigma_min",)),
        ({"rho": 1e9}, ("process edm: rho",)),
        ({"prediction_type": "epsilon"}, ("process edm: prediction_type", "prediction_type")),
        ({"sigma": 1.0}, ("process edm",)),
        ({"sigma_max": float("nan")}, ("process edm: sigma_max", "sigma_max")),
        ({"process": "edmm"}, ("process",)),
        ({"process": 3}, ("process",)),
    ],
)
def test_configurations_are_checked(values: dict[str, Any], about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        process_from_config({"process": "edm"} | values)


def test_configuration_survives_a_round_trip() -> None:
    process = EDM(sigma_min=0.01, sigma_data=1.0, sigma_schedule="exponential")
    assert process_from_config(process.to_config()) == process
    with refused(ConfigError, "process edm: sigma_data", "sigma_data"):
        EDM(sigma_data=-1.0)


def test_what_has_no_meaning_is_refused() -> None:
    for options, argument in (
        ({"timestep_spacing": "trailing"}, "timestep_spacing"),
        ({"steps_offset": 1}, "steps_offset"),
        ({"sigma_max": 5.0}, "sigma_min, sigma_max"),
    ):
        with refused(ConfigError, argument):
            SOLVERS["euler"](EDM(), 10, **options)
    with refused(ConfigError, "solver"):
        SOLVERS["ddim"](EDM(), 10)
    with refused(ConfigError, "steps", "10000"):
        SOLVERS["euler"](EDM(), 10_001)
