"""Every solver of `golden_cases` against the installed diffusers, in float64.

Two ways: the exact matrix of a whole run (no clipping), and trajectories through a random non-linear network with the
same noise (clipping, learned variances). The quick tests take seven steps with everything and other numbers of steps
with one set of options; the slow ones take everything.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.diffusion import NoiseSchedule, run, solver_table
from fastgen.errors import ConfigError
from tests.refusals import refused

from .diffusers_oracle import SCHEDULERS, deviation, in_float64, random_network, scheduler
from .golden import SCHEDULES, SPACINGS, TOLERANCE, Options, matrix_deviation, trajectories
from .golden_cases import GOLDEN

LAMBDA = [name for name in GOLDEN if name.startswith("dpm") and not SCHEDULERS[name].scaled]
SLOW_LMS = 50  # steps of LMS whose weights diffusers integrates by quadrature, a second a run


def check_matrices(name: str, schedule: NoiseSchedule, steps: int, many: list[Options]) -> None:
    golden = GOLDEN[name]
    for options in golden.chosen(many):
        found = matrix_deviation(golden, name, schedule, steps, options)
        limit = golden.tolerance(schedule, steps, options)
        assert found <= limit, f"{schedule.prediction_type} {steps} steps {options}: {found}, limit {limit}"


CASES = [(name, prediction) for name, golden in GOLDEN.items() for prediction in golden.predictions]


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_whole_runs_are_the_same_matrix(name: str, prediction: str) -> None:
    check_matrices(name, NoiseSchedule(prediction_type=prediction), 7, GOLDEN[name].options)


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("name", list(GOLDEN))
def test_other_numbers_of_steps(name: str, steps: int) -> None:
    if name == "lms" and steps >= SLOW_LMS:
        steps = 25
    schedule = NoiseSchedule(prediction_type="v_prediction")
    check_matrices(name, schedule, steps, GOLDEN[name].options[:1])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_all_options_with_other_numbers_of_steps(name: str, prediction: str, steps: int) -> None:
    many = GOLDEN[name].options
    check_matrices(
        name,
        NoiseSchedule(prediction_type=prediction),
        steps,
        many[:1] if name == "lms" and steps >= SLOW_LMS else many,
    )


@pytest.mark.parametrize("kind", ["cosine", "scaled"])
@pytest.mark.parametrize("name", GOLDEN)
def test_other_schedules(name: str, kind: str) -> None:
    for prediction in GOLDEN[name].predictions:
        schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES[kind])
        check_matrices(name, schedule, 7, GOLDEN[name].options[:2])


@pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if golden.spacings])
def test_steps_offset(name: str) -> None:
    golden, schedule = GOLDEN[name], NoiseSchedule(**SCHEDULES["scaled"])
    options = golden.options[0] | {"timestep_spacing": "leading", "steps_offset": 1}
    assert matrix_deviation(golden, name, schedule, 20, options) <= TOLERANCE


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if golden.rescales])
def test_zero_terminal_snr(name: str, prediction: str) -> None:
    golden = GOLDEN[name]
    if prediction not in golden.predictions:
        return
    schedule = NoiseSchedule(prediction_type=prediction, rescale_betas_zero_snr=True)
    for options in golden.chosen(golden.options[: 8 if name == "ddim" else 4]):
        if options.get("eta") == 1.0 and options["timestep_spacing"] != "leading":
            # The first step is all noise: the rest, 1 - alpha_bar - std^2, is 0, and in diffusers below 0 by
            # rounding, of which it takes the root.
            assert np.isfinite(solver_table(name, schedule, 12, **options).a).all()
            continue
        found = matrix_deviation(golden, name, schedule, 12, options)
        assert found <= golden.tolerance(schedule, 12, options), f"{options}: {found}"


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "lms"])  # 2 ms per weight, in diffusers
def test_thousand_steps(name: str, spacing: str) -> None:
    """The first set of options; DPM-Solver's 1001 step points fit into 1000 timesteps with trailing spacing only."""
    golden = GOLDEN[name]
    schedule = NoiseSchedule(prediction_type="v_prediction")
    if not golden.spacings:
        spacing = "linspace"
    options = golden.options[0] | ({"timestep_spacing": spacing} if golden.spacings else {})
    if name in LAMBDA and spacing != "trailing":
        with refused(ConfigError, "steps", spacing):
            solver_table(name, schedule, 1000, **options)
        return
    found = matrix_deviation(golden, name, schedule, 1000, options)
    assert found <= golden.tolerance(schedule, 1000, options)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in ("ddpm", "ddim")])
def test_times_and_first_scale(name: str) -> None:
    """What a run as a matrix does not show: the time inputs, fractional ones too, and the first state's size."""
    golden = GOLDEN[name]
    for kind, steps in (("linear", 2), ("cosine", 7)):
        schedule = NoiseSchedule(**SCHEDULES[kind])
        for options in golden.chosen(golden.options):
            table = solver_table(name, schedule, steps, **options)
            oracle, module, _ = scheduler(name, schedule, **options)
            with in_float64(module):
                oracle.set_timesteps(steps)
            atol = 1e-9
            if name == "dpm2_a":
                # sigma_down loses (sigma / sigma')^2 times its rounding in diffusers, and the middle of the step is
                # read off where log(sigma) rises by 0.05 and more a timestep.
                levels = np.unique(oracle.sigmas[oracle.sigmas > 0])
                atol = max(atol, 20 * np.finfo(float).eps * float((levels[1:] / levels[:-1]).max()) ** 2)
            np.testing.assert_allclose(
                table.time, oracle.timesteps, rtol=1e-12, atol=atol, err_msg=str(options)
            )
            sigma = float(oracle.sigmas[0]) if SCHEDULERS[name].scaled else 0.0
            scale = float(oracle.init_noise_sigma) / (sigma**2 + 1) ** 0.5
            assert table.initial_scale == pytest.approx(scale, rel=1e-13)


def test_continuous_times() -> None:
    schedule = NoiseSchedule(prediction_type="v_prediction")
    options = {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.02, "sigma_max": 80.0}
    oracle, _, _ = scheduler("euler", schedule, **options)
    oracle.set_timesteps(12)
    table = solver_table("euler", schedule, 12, **options)
    np.testing.assert_allclose(table.time, oracle.timesteps, rtol=1e-5)
    assert matrix_deviation(GOLDEN["euler"], "euler", schedule, 12, options) <= TOLERANCE
    with refused(ConfigError, "timestep_type", "v_prediction"):
        solver_table("euler", NoiseSchedule(), 12, **options)


def check_paths(name: str, prediction: str, steps: tuple[int, ...], clip: float | None) -> None:
    golden = GOLDEN[name]
    schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES["scaled"])
    clipping = {"clip_sample": False} if clip is None else {"clip_sample": True, "clip_sample_range": clip}
    for options, count in itertools.product(golden.chosen(golden.paths), steps):
        options = options | clipping
        found = deviation(*trajectories(golden, name, schedule, count, options))
        limit = golden.tolerance(schedule, count, options)
        assert found <= limit, f"{count} steps {options}: {found}, limit {limit}"


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_non_linear_trajectories(name: str, prediction: str) -> None:
    check_paths(name, prediction, (7,), 0.3)


@pytest.mark.parametrize("name", GOLDEN)
def test_clipping_is_on(name: str) -> None:
    """Without it the test above would show nothing."""
    schedule = NoiseSchedule(**SCHEDULES["scaled"])
    ends = [
        trajectories(GOLDEN[name], name, schedule, 7, GOLDEN[name].paths[0] | {"clip_sample": clip})[0]
        for clip in (True, False)
    ]
    assert deviation(*ends) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_trajectories_of_all_lengths(name: str, prediction: str, clip: float | None) -> None:
    check_paths(name, prediction, (1, 2, 10, 25 if name == "lms" else 50), clip)


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("name", ["dpm++2m_sde", "dpm++3m_sde"])
def test_noise_of_a_last_step_that_is_not_clean(name: str, kind: str) -> None:
    """Only here does a run end with noise: the other tests have none in the last row."""
    schedule = NoiseSchedule(**SCHEDULES["scaled"])
    options = {"final_sigmas_type": "sigma_min", "solver_type": kind, "timestep_spacing": "trailing"}
    table = solver_table(name, schedule, 9, **options)
    generator = torch.Generator().manual_seed(0)
    x, *noise = torch.randn(10, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    network = random_network(1, 3)
    ours = run(table, network, x, noise)
    theirs = GOLDEN[name].other(name, schedule, 9, network, x, noise, **options)
    assert deviation(ours.numpy(), theirs.numpy()) <= TOLERANCE
    noise[-1] = torch.zeros_like(x)
    assert deviation(run(table, network, x, noise).numpy(), theirs.numpy()) > 1e-4


def test_float32_diffusers_agrees_too() -> None:
    """The unpatched scheduler, as users run it: agreement to float32."""
    from diffusers import DDIMScheduler

    schedule = NoiseSchedule()
    scheduler: Any = DDIMScheduler(**schedule.to_config(), clip_sample=False)
    scheduler.set_timesteps(20)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = random_network(1, 3)
    ours = run(
        solver_table("ddim", schedule, 20, as_diffusers=True, clip_sample=False),
        network,
        x.double(),
        torch.zeros(20, *x.shape),
    )
    for t in scheduler.timesteps:
        x = scheduler.step(network(x.double(), float(t)).float(), t, x).prev_sample
    assert torch.float32 is not torch.float64
    torch.testing.assert_close(x, ours.float(), rtol=1e-3, atol=1e-3)
