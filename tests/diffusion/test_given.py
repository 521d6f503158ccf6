"""Timesteps and noise levels that a caller gives: as diffusers' set_timesteps, and what is refused, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import EDM, SOLVERS, VPSDE, FlowMatching, NoiseSchedule, solver_table
from fastgen.errors import ArgumentError, ConfigError
from tests.refusals import refused

from . import multistep_oracle
from .diffusers_oracle import continuous_run, deviation, table_matrix
from .golden import PREDICTIONS, SCHEDULES, TOLERANCE, matrix_deviation
from .golden_cases import GOLDEN

TIMES = (960, 700, 433, 180, 20)
SIGMAS = (14.0, 5.5, 1.7, 0.4, 0.06)
BY_TIMESTEPS = (
    "ddpm",
    "euler",
    "heun",
    "dpm++2m",
    "dpm++3m",
    "dpm_multistep",
    "dpm++2m_sde",
    "dpm++2s",
    "dpm++3s",
)
UNCLIPPED = {"ddpm": {"clip_sample": False}}
REFUSING = (
    "plms",
    "pndm",
    "euler_maruyama",
    "predictor_corrector",
)  # even steps, or steps in an SDE's own time
WHOLE = ("ddpm", "ddim", "lcm", "tcd")  # solvers that know timesteps and no levels between


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", BY_TIMESTEPS)
def test_timesteps_are_those_of_diffusers(name: str, kind: str) -> None:
    for prediction in GOLDEN[name].predictions:
        schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES[kind])
        options = {"as_diffusers": True, "timesteps": TIMES, **UNCLIPPED.get(name, {})}
        assert solver_table(name, schedule, **options).time[0] == TIMES[0]
        found = matrix_deviation(GOLDEN[name], name, schedule, len(TIMES), options)
        assert found <= TOLERANCE


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sigmas_of_euler_are_those_of_diffusers(prediction: str) -> None:
    """Its list ends with where the run ends; here, too, a last 0 may be said."""
    schedule = NoiseSchedule(prediction_type=prediction)
    options = {"sigmas": (*SIGMAS, 0.0)}
    assert matrix_deviation(GOLDEN["euler"], "euler", schedule, len(SIGMAS), options) <= TOLERANCE
    unsaid = solver_table("euler", schedule, sigmas=SIGMAS)
    np.testing.assert_array_equal(unsaid.a, solver_table("euler", schedule, **options).a)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_timesteps_of_distilled_models_are_those_of_diffusers(name: str) -> None:
    options: dict[str, Any] = {"timesteps": (979, 639, 239, 39)}
    assert multistep_oracle.matrix_deviation(name, NoiseSchedule(), 4, **options) <= TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigmas_of_flow_matching_are_those_of_diffusers(shift: float) -> None:
    sigmas = (1.0, 0.8, 0.5, 0.1)
    scheduler, theirs = continuous_run(
        "flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", 4, shift=shift, sigmas=sigmas
    )
    table = solver_table("euler", FlowMatching(shift=shift), sigmas=sigmas)
    np.testing.assert_allclose(table.time, scheduler.timesteps, rtol=1e-6)
    assert deviation(table_matrix(table), theirs) <= TOLERANCE


def test_every_solver_takes_them_or_refuses_by_name() -> None:
    schedule = NoiseSchedule(prediction_type="v_prediction")
    for name, solver in SOLVERS.items():
        process = VPSDE() if solver.sde else schedule
        if name in REFUSING:
            for option in ("timesteps", "sigmas"):
                with refused(ConfigError, f"solver {name}", option):
                    solver_table(name, process, 3, **{option: (3.0, 2.0, 1.0)})
            continue
        table = solver_table(name, schedule, timesteps=(900, 500, 100))
        assert {900.0, 500.0, 100.0} <= set(table.time), name
        if name not in WHOLE:
            levels = solver_table(name, schedule, sigmas=(10.0, 3.0, 0.5)).sigma
            for level in (10.0, 3.0, 0.5):
                assert np.isclose(levels, level, rtol=1e-12).any(), name


def test_on_processes_without_timesteps() -> None:
    for process in (EDM(), VPSDE(), FlowMatching()):
        levels = solver_table("dpm++2m", process, sigmas=(0.9, 0.5, 0.1)).sigma
        expected = np.array([0.9, 0.5, 0.1])
        np.testing.assert_allclose(
            levels, expected / (1.0 - expected) if process.name == "flow" else expected
        )
        with refused(ConfigError, "timesteps", "sigmas"):
            solver_table("euler", process, timesteps=(900, 500))
        with refused(ConfigError, "sigmas", "final_sigmas_type"):
            solver_table("deis", process, sigmas=(0.9, 0.5, 0.1))
    with refused(ConfigError, "sigmas", "0 to 1"):
        solver_table("euler", FlowMatching(), sigmas=(2.0, 0.5))


@pytest.mark.parametrize(
    ("name", "options", "argument"),
    [
        ("ddim", {"timesteps": (100, 500)}, "timesteps"),
        ("ddim", {"timesteps": (500, 500)}, "timesteps"),
        ("ddim", {"timesteps": (1000, 500)}, "timesteps"),
        ("ddim", {"timesteps": (500.5, 100)}, "timesteps"),
        ("ddim", {"timesteps": ()}, "timesteps"),
        ("ddim", {"timesteps": (500, -1)}, "solver ddim: timesteps[1]"),
        ("ddim", {"timesteps": (500, 100), "timestep_respacing": "2"}, "timesteps, timestep_respacing"),
        ("euler", {"timesteps": (500, 100), "sigmas": (2.0, 1.0)}, "timesteps, sigmas"),
        ("euler", {"timesteps": (500, 100), "use_karras_sigmas": True}, "timesteps"),
        ("euler", {"sigmas": (2.0, 1.0), "interpolation_type": "log_linear"}, "interpolation_type"),
        ("euler", {"sigmas": (2.0, 1.0), "sigma_max": 5.0}, "sigma_min, sigma_max"),
        ("dpm++2m", {"sigmas": (1.0, 2.0)}, "sigmas"),
        ("dpm++2m", {"sigmas": (0.0,)}, "sigmas"),
        ("dpm++2m", {"timesteps": (500.5, 100)}, "timesteps"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], argument: str) -> None:
    with refused(ConfigError, argument):
        solver_table(name, NoiseSchedule(), **options)


def test_steps_are_their_number() -> None:
    with refused(ConfigError, "steps", "timesteps"):
        solver_table("ddim", NoiseSchedule(), 3, timesteps=(500, 100))
    with refused(ConfigError, "steps"):
        solver_table("ddim", NoiseSchedule())


def test_requests() -> None:
    """One list is one value; a list of lists is one for each sample; names come before lengths."""
    from fastgen.engines.diffusion.request import resolve
    from fastgen.engines.diffusion.settings import DiffusionSettings

    settings = DiffusionSettings(schedule={}, solver="ddim", steps=7)
    request = resolve(settings, n=2, timesteps=[900, 500, 100])
    assert request.evaluations() == [3, 3]
    assert resolve(settings, **request.to_dict()).to_dict() == request.to_dict()
    unlike = resolve(settings, n=2, timesteps=[[900, 500], None])
    assert unlike.evaluations() == [2, 7]
    assert resolve(settings, **unlike.to_dict()).to_dict() == unlike.to_dict()
    with refused(ArgumentError, "timesteps", "plms"):
        resolve(settings, n=2, solver="plms", timesteps=[900, 500, 100])
    with refused(ArgumentError, "clip_range", "ddim"):
        resolve(settings, n=2, clip_range=[1.0, 2.0, 3.0])
    with refused(ArgumentError, "clip_range"):
        resolve(settings, n=2, solver=["ddim", "euler"], clip_range=[1.0, 2.0, 3.0])
    with refused(ConfigError, "eta", "3"):
        resolve(settings, n=2, eta=[0.1, 0.2, 0.3])
