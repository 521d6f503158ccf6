"""Flow matching against diffusers in float64, and by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import SOLVERS, FlowMatching, run, solver_table
from fastgen.diffusion.sigmas import SigmaOptions, sigma_points
from fastgen.errors import ConfigError
from tests.refusals import refused

from .diffusers_oracle import continuous_run, table_matrix
from .diffusers_oracle import deviation as matrix_deviation
from .process_oracles import SHAPE, network

DYNAMIC = {"use_dynamic_shifting": True}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of the process, of the solver
    ({}, {}),
    ({"shift": 3.0}, {}),
    ({"num_train_timesteps": 100, "shift": 0.5}, {}),
    ({"shift": 3.0}, {"use_karras_sigmas": True}),
    ({"shift": 3.0}, {"use_exponential_sigmas": True}),
    ({"shift": 3.0}, {"use_beta_sigmas": True}),
    ({"shift_terminal": 0.02}, {}),
    ({"invert_sigmas": True}, {}),
    (DYNAMIC, {}),
    ({**DYNAMIC, "time_shift_type": "linear", "base_shift": 0.6, "shift_terminal": 0.1}, {}),
]


@pytest.mark.parametrize(("process", "options"), CASES, ids=[str({**p, **o}) for p, o in CASES])
def test_euler_equals_diffusers(process: dict[str, Any], options: dict[str, Any]) -> None:
    ours = FlowMatching(**process, image_seq_len=1024 if "use_dynamic_shifting" in process else None)
    shift = {"mu": ours.mu} if ours.use_dynamic_shifting else {}
    for steps in (2, 7, 10, 50):
        scheduler, theirs = continuous_run(
            "flow_match_euler_discrete",
            "FlowMatchEulerDiscreteScheduler",
            steps,
            **process,
            **options,
            **shift,
        )
        table = SOLVERS["euler"](ours, steps, **options)
        assert matrix_deviation(table_matrix(table), theirs) <= 1e-12
        np.testing.assert_allclose(table.time, scheduler.timesteps, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_equals_diffusers(shift: float) -> None:
    for steps in (2, 7, 10, 50):
        scheduler, theirs = continuous_run(
            "flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler", steps, shift=shift
        )
        table = SOLVERS["heun"](FlowMatching(shift=shift), steps)
        assert matrix_deviation(table_matrix(table), theirs) <= 1e-12
        np.testing.assert_allclose(table.time, scheduler.timesteps, rtol=1e-12)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
def test_solvers_in_log_snr_equal_diffusers(solver: str) -> None:
    """DPM-Solver++ and UniPC with use_flow_sigmas, as pipelines for flow models run them."""
    name, cls, rule = {
        "dpm++2m": ("dpmsolver_multistep", "DPMSolverMultistepScheduler", "below_one"),
        "unipc": ("unipc_multistep", "UniPCMultistepScheduler", "nearly_one"),
    }[solver]
    for shift in (1.0, 3.0):
        for steps in (7, 20):
            _, theirs = continuous_run(
                name, cls, steps, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
            )
            table = SOLVERS[solver](FlowMatching(shift=shift, lambda_levels=rule), steps)
            # UniPC solves for its coefficients in float32 whatever its tables are.
            assert matrix_deviation(table_matrix(table), theirs) <= 1e-12


def test_velocity_is_integrated_as_it_is() -> None:
    """x' = x + (s' - s) F: nothing divided, nothing subtracted, whatever the level."""
    table = SOLVERS["euler"](FlowMatching(), 4)
    x = start = np.random.default_rng(0).normal(size=SHAPE)
    sigmas = [*np.linspace(1.0, 0.001, 4), 0.0]
    for now, after in itertools.pairwise(sigmas):
        x = x + (after - now) * network(x, 1000.0 * now)
    np.testing.assert_allclose(run(table, network, start, [start] * 4), x, rtol=0, atol=1e-14)


def test_images_and_velocities_are_two_words_for_one() -> None:
    """prediction_type sample (x1 of Lipman et al.) from a velocity, and time in [0, 1] from data to noise and back."""

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        return network(x, t)

    def forward(
        x: np.ndarray, t: float
    ) -> np.ndarray:  # the time of Lipman et al.: 0 is noise, the velocity to data
        return -network(x, 1000.0 * (1.0 - t))

    def image(x: np.ndarray, t: float) -> np.ndarray:
        return x - t / 1000.0 * network(x, t)

    want = None
    for process, net in (
        (FlowMatching(), velocity),
        (FlowMatching(invert_sigmas=True, time="unit"), forward),
        (FlowMatching(prediction_type="sample"), image),
    ):
        table = SOLVERS["rk4"](process, 6)
        x = np.random.default_rng(0).normal(size=SHAPE)
        got = run(table, net, x, [x] * len(table))
        want = got if want is None else want
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_trailing_levels_are_those_of_flux() -> None:
    """The pipeline's own sigmas, linspace(1, 1 / n, n), shifted by e^mu."""
    process = FlowMatching(use_dynamic_shifting=True, image_seq_len=4096)
    assert process.mu == pytest.approx(1.15)
    found = sigma_points(process, 4, SigmaOptions(timestep_spacing="trailing")).levels
    plain = np.array([1.0, 0.75, 0.5, 0.25])
    want = math.exp(1.15) / (math.exp(1.15) + 1.0 / plain - 1.0)
    np.testing.assert_allclose(found, [*want, 0.0], rtol=1e-14)


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"shift": 0.0}, "process flow: shift"),
        ({"prediction_type": "epsilon"}, "process flow: prediction_type"),
        ({"base_image_seq_len": 5000}, "base_image_seq_len"),
        ({"shift_terminal": 1.0}, "process flow: shift_terminal"),
        ({"num_train_timesteps": 10**9}, "process flow: num_train_timesteps"),
        (
            {
                "use_dynamic_shifting": True,
                "time_shift_type": "linear",
                "base_shift": -9.0,
                "image_seq_len": 256,
            },
            "image_seq_len",
        ),
        ({"image_seq_len": 4096}, "image_seq_len"),
        *(
            (
                {
                    "use_dynamic_shifting": True,
                    "time_shift_type": shift,
                    "base_shift": -high,
                    "max_shift": high,
                    "max_image_seq_len": 257,
                    "image_seq_len": 10**8,
                },
                "image_seq_len",
            )
            for shift in ("exponential", "linear")
            for high in (20.0, -20.0)
        ),
        ({"process": "edm"}, "process"),
    ],
)
def test_configurations_are_checked(values: dict[str, Any], argument: str) -> None:
    with refused(ConfigError, argument):
        FlowMatching.from_config({"process": "flow"} | values)


def test_estimates_of_the_noise_cannot_start_from_pure_noise() -> None:
    pure = {"use_karras_sigmas": True, "sigma_max": 1.0}
    assert len(solver_table("unipc", FlowMatching(), 5, **pure)) == 5
    with refused(ConfigError, "predict_x0", "sigma_max"):
        solver_table("unipc", FlowMatching(), 5, predict_x0=False, **pure)


def test_refusals() -> None:
    with refused(ConfigError, "image_seq_len"):
        SOLVERS["euler"](FlowMatching(use_dynamic_shifting=True), 4)
    for solver, steps in (("dpm++2m", 1), ("euler", 2)):
        with refused(ConfigError, "num_train_timesteps"):
            SOLVERS[solver](FlowMatching(num_train_timesteps=1), steps)
    with refused(ConfigError, "timestep_spacing"):
        SOLVERS["euler"](FlowMatching(), 4, timestep_spacing="leading")
    with refused(ConfigError, "sigma"):
        SOLVERS["euler"](FlowMatching(), 4, use_karras_sigmas=True, sigma_max=3.0, sigma_min=0.1)
