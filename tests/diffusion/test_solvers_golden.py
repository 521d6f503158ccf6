"""Every solver against the installed diffusers, in float64.

Two ways: the exact matrix of a whole run (no clipping), and trajectories through a random non-linear network
    with
the same noise (clipping, learned variances).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.diffusion import SOLVERS, NoiseSchedule, run, solver_table
from fastgen.diffusion.sigmas import sigma_ladder
from fastgen.errors import ConfigError

from .diffusers_oracle import (
    deviation,
    diffusers_matrix,
    diffusers_run,
    evaluations,
    in_float64,
    random_network,
    scheduler,
    table_matrix,
)

TOLERANCE = 1e-12
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("linspace", "leading", "trailing")
STEPS = (1, 2, 7, 50)
PATH_STEPS = (1, 2, 7, 25, 50)
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


def product(**values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


# fixed_large_log has no oracle: diffusers takes the root of a negative logarithm there.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ddpm": product(variance_type=("fixed_small", "fixed_small_log", "fixed_large"), clip_sample=(False,)),
    "ddim": product(
        eta=(0.0, 0.5, 1.0),
        set_alpha_to_one=(True, False),
        use_clipped_model_output=(False, True),
        clip_sample=(False,),
        constant_stride=(True,),
    ),
    "dpm++2m": product(
        solver_type=("midpoint", "heun"),
        final_sigmas_type=("zero", "sigma_min"),
        lower_order_final=(True, False),
        euler_at_final=(False, True),
    ),
    "euler": [
        *product(final_sigmas_type=("zero", "sigma_min"), interpolation_type=("linear", "log_linear")),
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
        {"use_beta_sigmas": True},
        {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0},
        {"use_beta_sigmas": True, "interpolation_type": "log_linear"},
    ],
    "heun": [
        {},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
    ],
}


def label(options: dict[str, Any]) -> str:
    return "-".join(k if v is True and k.startswith("use_") else str(v) for k, v in options.items())


def matrix_deviation(name: str, schedule: NoiseSchedule, steps: int, **options: Any) -> float:
    return deviation(
        table_matrix(solver_table(name, schedule, steps, **options)),
        diffusers_matrix(name, schedule, steps, **options),
    )


def tolerance(name: str, schedule: NoiseSchedule, steps: int, **options: Any) -> float:
    """1e-12, but for Heun where one step spans more than three decades of sigma.

    diffusers takes the second slope as (y - x_0) / sigma', a difference that has lost sigma / sigma' times the rounding
    of y; so few steps are no use to anybody, and our rows take the slope from the network's output instead.
    """
    if name != "heun" or steps == 1:
        return TOLERANCE
    chosen = SOLVERS["heun"].options_type(**options)
    sigmas = sigma_ladder(schedule, steps, chosen).levels[:-1]
    lost = sigmas[:-1] / sigmas[1:]
    if chosen.clip_sample:  # of y, as large as sigma, in a state that ends as large as the range
        lost = lost * sigmas[:-1] / chosen.clip_sample_range
    return max(TOLERANCE, 2 * np.finfo(float).eps * float(lost.max()))


CASES = [(name, options) for name, many in OPTIONS.items() for options in many]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{label(o)}" for n, o in CASES])
def test_whole_runs_are_the_same_matrix(name: str, options: dict[str, Any]) -> None:
    for prediction, spacing, steps in itertools.product(PREDICTIONS, SPACINGS, STEPS):
        schedule = NoiseSchedule(prediction_type=prediction)
        chosen = options | {"timestep_spacing": spacing}
        found = matrix_deviation(name, schedule, steps, **chosen)
        assert found <= tolerance(name, schedule, steps, **chosen), f"{prediction} {spacing} {steps}: {found}"


@pytest.mark.parametrize("kind", ["cosine", "scaled"])
@pytest.mark.parametrize("name", OPTIONS)
def test_other_schedules(name: str, kind: str) -> None:
    for prediction, spacing, options in itertools.product(PREDICTIONS, SPACINGS, OPTIONS[name][:2]):
        schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES[kind])
        for steps in (7, 20):
            found = matrix_deviation(name, schedule, steps, timestep_spacing=spacing, **options)
            limit = tolerance(name, schedule, steps, timestep_spacing=spacing, **options)
            assert found <= limit, f"{prediction} {spacing} {steps} {options}: {found}"


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_offset(name: str) -> None:
    options = OPTIONS[name][0] | {"timestep_spacing": "leading", "steps_offset": 1}
    assert matrix_deviation(name, NoiseSchedule(**SCHEDULES["scaled"]), 50, **options) <= TOLERANCE


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "heun"])  # diffusers' Heun cannot
def test_zero_terminal_snr(name: str, spacing: str, prediction: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction, rescale_betas_zero_snr=True)
    for options in OPTIONS[name]:
        options = options | {"timestep_spacing": spacing}
        if options.get("eta") == 1.0 and spacing != "leading":
            # The first step is all noise: the rest, 1 - alpha_bar - std^2, is 0, and in diffusers below 0 by
            # rounding, of which it takes the root.
            assert np.isfinite(solver_table(name, schedule, 12, **options).a).all()
            continue
        found = matrix_deviation(name, schedule, 12, **options)
        assert found <= TOLERANCE, f"{options}: {found}"


def thousand_steps(name: str, prediction: str, spacing: str, many: list[dict[str, Any]]) -> None:
    for options in many:
        found = matrix_deviation(
            name, NoiseSchedule(prediction_type=prediction), 1000, timestep_spacing=spacing, **options
        )
        assert found <= TOLERANCE, f"{options}: {found}"


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_thousand_steps(name: str, prediction: str) -> None:
    thousand_steps(name, prediction, "trailing", OPTIONS[name][:1])


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_thousand_steps_all_options(name: str, prediction: str, spacing: str) -> None:
    if name == "dpm++2m" and spacing != "trailing":
        # 1001 knots do not fit into 1000 timesteps: diffusers returns NaN (linspace) or stops with an IndexError.
        schedule = NoiseSchedule(prediction_type=prediction)
        with pytest.raises(ConfigError, match="visit a timestep twice"):
            solver_table(name, schedule, 1000, timestep_spacing=spacing)
        return
    many = OPTIONS[name][: 2 if name in ("euler", "heun") else None]  # Heun's 1999 evaluations take a while
    # Visits t = 0, so that sigma_min leaves a last step of no length, where diffusers' heun is 0 / 0.
    many = [o for o in many if (o.get("solver_type"), o.get("final_sigmas_type")) != ("heun", "sigma_min")]
    thousand_steps(name, prediction, spacing, many)


def trajectories(
    name: str, schedule: NoiseSchedule, steps: int, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(evaluations(name, steps), 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise[-1] = 0  # diffusers adds noise to finished samples
    network = random_network(1, 3, options.get("variance_type"))
    ours = run(solver_table(name, schedule, steps, **options), network, x, noise)
    theirs = diffusers_run(name, schedule, steps, network, x, list(noise), **options)
    return ours.numpy(), theirs.numpy()


PATHS: list[tuple[str, dict[str, Any]]] = [
    *(("ddpm", {"variance_type": v}) for v in ("fixed_small", "fixed_large", "learned", "learned_range")),
    *(
        ("ddim", {"eta": eta, "use_clipped_model_output": clipped, "constant_stride": True})
        for eta in (0.0, 1.0)
        for clipped in (False, True)
    ),
    ("dpm++2m", {}),
    ("dpm++2m", {"solver_type": "heun", "final_sigmas_type": "sigma_min"}),
    ("euler", {}),
    ("euler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("heun", {}),
    ("heun", {"use_karras_sigmas": True}),
]


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if c[0] in ("euler", "heun")])
def test_times_and_first_scale(name: str, options: dict[str, Any]) -> None:
    """What a run as a matrix does not show: the time inputs, fractional ones too, and the first state's size."""
    for spacing, steps in itertools.product(SPACINGS, STEPS):
        options = options | {"timestep_spacing": spacing}
        table = solver_table(name, NoiseSchedule(), steps, **options)
        oracle, module, _ = scheduler(name, NoiseSchedule(), **options)
        with in_float64(module):
            oracle.set_timesteps(steps)
        np.testing.assert_allclose(table.time, oracle.timesteps, rtol=1e-12, atol=1e-9)
        scale = float(oracle.init_noise_sigma / (oracle.sigmas[0] ** 2 + 1) ** 0.5)
        assert table.initial_scale == pytest.approx(scale, rel=1e-13)


def test_continuous_times() -> None:
    schedule = NoiseSchedule(prediction_type="v_prediction")
    options = {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.02, "sigma_max": 80.0}
    oracle, _, _ = scheduler("euler", schedule, **options)
    oracle.set_timesteps(12)
    table = solver_table("euler", schedule, 12, **options)
    np.testing.assert_allclose(table.time, oracle.timesteps, rtol=1e-5)
    assert matrix_deviation("euler", schedule, 12, **options) <= TOLERANCE
    with pytest.raises(ConfigError, match="continuous is for v_prediction"):
        solver_table("euler", NoiseSchedule(), 12, **options)


@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "options"), PATHS, ids=[f"{n}-{label(o)}" for n, o in PATHS])
def test_non_linear_trajectories(
    name: str, options: dict[str, Any], prediction: str, clip: float | None
) -> None:
    schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES["scaled"])
    clipping = {"clip_sample": False} if clip is None else {"clip_sample": True, "clip_sample_range": clip}
    for spacing, steps in itertools.product(SPACINGS, (1, 2, 7, 25)):
        chosen = {"timestep_spacing": spacing, **options, **clipping}
        ours, theirs = trajectories(name, schedule, steps, **chosen)
        assert deviation(ours, theirs) <= tolerance(name, schedule, steps, **chosen), (
            f"{spacing} {steps} steps"
        )
    if clip is not None:
        unclipped, _ = trajectories(
            name, schedule, steps, timestep_spacing=spacing, **options, clip_sample=False
        )
        assert deviation(ours, unclipped) > 1e-3  # the clipping was really on


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "options"), PATHS, ids=[f"{n}-{label(o)}" for n, o in PATHS])
def test_long_trajectories(name: str, options: dict[str, Any], prediction: str) -> None:
    """50 steps with every spacing, and 1000 with trailing, which all solvers take, for the first of each."""
    schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES["scaled"])
    first = next(path for path in PATHS if path[0] == name) == (name, options)
    for steps, spacing in [*((50, s) for s in SPACINGS), *([(1000, "trailing")] if first else [])]:
        chosen = {"timestep_spacing": spacing, **options, "clip_sample": True}
        ours, theirs = trajectories(name, schedule, steps, **chosen)
        assert deviation(ours, theirs) <= tolerance(name, schedule, steps, **chosen), (
            f"{spacing} {steps} steps"
        )


def test_float32_diffusers_agrees_too() -> None:
    """The unpatched scheduler, as users run it: agreement to float32."""
    from diffusers import DDIMScheduler

    schedule = NoiseSchedule()
    scheduler = DDIMScheduler(**schedule.to_config(), clip_sample=False)
    scheduler.set_timesteps(20)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = random_network(1, 3)
    ours = run(
        solver_table("ddim", schedule, 20, clip_sample=False), network, x.double(), torch.zeros(20, *x.shape)
    )
    for t in scheduler.timesteps:
        x = scheduler.step(network(x.double(), float(t)).float(), t, x).prev_sample
    assert torch.float32 is not torch.float64
    torch.testing.assert_close(x, ours.float(), rtol=1e-3, atol=1e-3)
