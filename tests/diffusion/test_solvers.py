"""Options of the solvers, what is refused, learned variances, and where we leave diffusers on purpose."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.diffusion import SOLVERS, NoiseSchedule, pack, run, solver_table
from fastgen.errors import ConfigError
from fastgen_kernels.reverse_step import row
from tests.refusals import refused

from .diffusers_oracle import random_network

COSINE = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
# Those that solve processes of their own are tested with them.
DISCRETE = [name for name in SOLVERS if name not in ("euler_maruyama", "predictor_corrector", "consistency")]


def test_options_are_listed_with_types_defaults_and_ranges() -> None:
    listed = {o.name: o for o in SOLVERS["ddim"].options}
    assert listed["eta"].default == 0.0
    assert (listed["eta"].type, listed["eta"].allowed) == ("float", "0.0 to 1000.0")
    assert listed["timestep_spacing"].allowed == "linspace | leading | trailing"
    assert listed["set_alpha_to_one"].allowed == "True | False"
    assert all(solver.name == name for name, solver in SOLVERS.items())
    for name in DISCRETE:
        solver = SOLVERS[name]
        defaults = {o.name: o.default for o in solver.options}
        np.testing.assert_array_equal(solver(COSINE, 5).a, solver(COSINE, 5, **defaults).a)


@pytest.mark.parametrize(
    ("name", "steps", "options", "words"),
    [
        ("dpm++4m", 10, {}, ["solver", "ddpm, ddim, dpm++2m, euler, heun", "dpm++4m"]),
        (
            "euler",
            10,
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            ["use_karras_sigmas", "at most one"],
        ),
        ("euler", 10, {"sigma_min": 0.1}, ["sigma_min", "only with one of use_karras_sigmas"]),
        (
            "euler",
            10,
            {"use_karras_sigmas": True, "sigma_min": 9.0, "sigma_max": 1.0},
            ["sigma_min: 9 must be below sigma_max, 1"],
        ),
        ("euler", 10, {"interpolation_type": "cubic"}, ["interpolation_type", "linear, log_linear", "cubic"]),
        ("heun", 10, {"final_sigmas_type": "zero"}, ["final_sigmas_type", "known"]),
        ("ddim", 0, {}, ["steps", "1 to num_train_timesteps = 1000", "0"]),
        ("ddim", 1001, {}, ["steps", "1000", "1001"]),
        ("ddim", 10.0, {}, ["steps", "int", "float"]),
        ("ddim", True, {}, ["steps", "int", "bool"]),
        ("ddim", 10, {"Eta": 1.0}, ["solver ddim", "Eta", "known", "eta", "set_alpha_to_one"]),
        ("ddim", 10, {"eta": -0.5}, ["eta", "0.0", "-0.5"]),
        ("ddim", 10, {"eta": float("inf")}, ["eta", "finite"]),
        ("ddim", 10, {"eta": "1"}, ["eta", "float", "str"]),
        ("ddim", 10, {"eta": 3.0}, ["eta", "3.0", "smaller eta"]),
        ("ddim", 10, {"clip_sample_range": 0.0}, ["clip_sample_range", "0.0"]),
        ("ddim", 10, {"clip_sample": 1}, ["clip_sample", "bool", "1"]),
        ("ddim", 10, {"timestep_spacing": "karras"}, ["timestep_spacing", "trailing", "karras"]),
        ("ddim", 10, {"variance_type": "fixed_small"}, ["variance_type", "known"]),
        ("ddpm", 10, {"variance_type": "huge"}, ["variance_type", "fixed_large_log", "huge"]),
        ("ddpm", 10, {"steps_offset": -1}, ["steps_offset", "-1"]),
        ("ddpm", 10, {"timestep_spacing": "leading", "steps_offset": 150}, ["steps_offset", "150"]),
        ("dpm++2m", 10, {"sample_max_value": 0.0}, ["sample_max_value", "1e-06", "0.0"]),
        ("dpm++2m", 10, {"solver_type": "bh2"}, ["solver_type", "midpoint, heun", "bh2"]),
        ("dpm++2m", 10, {"solver_order": 3}, ["solver_order", "known"]),
        ("dpm++2m", 10, {"rho": 5.0}, ["rho", "use_karras_sigmas or use_polyexponential_sigmas"]),
        ("dpm++2m", 10, {"use_lu_lambdas": True, "use_beta_sigmas": True}, ["use_lu_lambdas", "at most one"]),
        ("lms", 10, {"solver_order": 5}, ["solver_order", "1 to 4", "5"]),
        (
            "dpm_multistep",
            10,
            {"algorithm_type": "dpmsolver"},
            ["final_sigmas_type: zero", "sigma_min", "dpmsolver++"],
        ),
        (
            "dpm_multistep",
            10,
            {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
            ["solver_order: 3", "sde-dpmsolver++"],
        ),
        (
            "dpm_singlestep",
            10,
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            ["solver_order: 3", "dpm++3m_sde"],
        ),
        ("dpm_singlestep", 10, {"algorithm_type": "sde-dpmsolver"}, ["algorithm_type", "sde-dpmsolver++"]),
        ("dpm++2m", 1000, {}, ["steps", "twice", "trailing"]),
        ("dpm++2m", 600, {"timestep_spacing": "leading"}, []),
        ("dpm++2m", 1000, {"timestep_spacing": "leading"}, ["steps", "twice"]),
    ],
)
def test_refusals_name_what_was_wrong(
    name: str, steps: Any, options: dict[str, Any], words: list[str]
) -> None:
    if not words:
        solver_table(name, COSINE, steps, **options)
        return
    with pytest.raises(ValueError) as error:
        solver_table(name, COSINE, steps, **options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", [name for name in DISCRETE if name not in ("lcm", "tcd")])  # have no spacing
def test_epsilon_at_zero_terminal_snr_is_refused_only_where_it_is_used(name: str) -> None:
    schedule = NoiseSchedule(rescale_betas_zero_snr=True)
    with refused(ConfigError, "prediction_type", "999", "v_prediction"):
        solver_table(name, schedule, 10, timestep_spacing="trailing")
    solver_table(name, schedule, 10, timestep_spacing="leading")


def test_many_steps_from_zero_terminal_snr_never_go_backwards() -> None:
    """The stand-in for alphas_cumprod = 0 must be smaller than the next value visited."""
    schedule = NoiseSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    table = solver_table("dpm++2m", schedule, 1000, timestep_spacing="trailing")
    assert (table.a[0, row.X0]) > 0
    assert np.abs(table.a[:, [row.X, row.X0]]).max() < 10


PREDICTIONS = st.sampled_from(["epsilon", "sample", "v_prediction"])
SCHEDULES = st.builds(
    NoiseSchedule,
    num_train_timesteps=st.integers(20, 300),
    beta_start=st.floats(1e-6, 0.05),
    beta_end=st.floats(1e-6, 0.2),
    beta_schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]),
    rescale_betas_zero_snr=st.booleans(),
    prediction_type=PREDICTIONS,
)
# Of options that may be larger by far than any use of them, what is drawn: at the ends of their range they are refused.
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "steps_offset": st.integers(0, 2),
    "clip_sample_range": st.floats(0.1, 10),
    "eta": st.floats(0, 1),
    "sigma_min": st.none() | st.floats(1e-3, 0.1),
    "sigma_max": st.none() | st.floats(1.0, 1e3),
    "S_churn": st.floats(0, 10),
    "timestep_type": st.just("discrete"),  # the other tells log(sigma) / 4, not a timestep
    "timestep_respacing": st.none() | st.sampled_from(["10", "ddim5"]),
    "original_inference_steps": st.integers(1, 60),
    "tau_start": st.floats(0, 300),
    "tau_end": st.floats(0, 300),
}


def strategy(name: str, hint: Any, rules: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values of an option, from its type and bounds as declared."""
    if name in USUAL:
        return USUAL[name]
    if hint is bool:
        return st.booleans()
    if "choices" in rules:
        return st.sampled_from(rules["choices"])
    numbers = st.integers if "int" in str(hint) else st.floats
    if str(hint).startswith("tuple"):
        return st.lists(numbers(rules["low"], rules["high"]), max_size=4).map(tuple)
    return (
        numbers(rules["low"], rules["high"])
        if hint in (int, float)
        else st.none() | numbers(rules["low"], 10.0)
    )


def own_options(name: str) -> dict[str, st.SearchStrategy[Any]]:
    """A strategy for each option of solver `name`."""
    cls = SOLVERS[name].options_type
    hints = typing.get_type_hints(cls)
    return {f.name: strategy(f.name, hints[f.name], f.metadata) for f in dataclasses.fields(cls)}


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++3m", "dpm_singlestep"])
def test_levels_that_round_to_zero_are_refused(name: str) -> None:
    """sigma_min^(1 / rho) is lost beside sigma_max^(1 / rho)."""
    schedule = NoiseSchedule(num_train_timesteps=20, beta_start=1e-6, beta_end=0.125, beta_schedule="linear")
    with refused(ConfigError, f"solver {name}", "rho"):
        solver_table(name, schedule, 2, use_karras_sigmas=True, rho=0.125, lower_order_final=False)


@pytest.mark.parametrize("name", DISCRETE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_valid_options_give_finite_tables_or_words(name: str, data: st.DataObject) -> None:
    schedule = data.draw(SCHEDULES)
    steps = data.draw(st.integers(1, min(schedule.num_train_timesteps, 60)))
    options = data.draw(st.fixed_dictionaries({}, optional=own_options(name)))
    try:
        table = solver_table(name, schedule, steps, **options)
    except ConfigError as error:
        if "is not finite" in str(error):  # found out only by looking at the finished table
            raise
        return
    assert 0 <= table.time.min() <= table.time.max() < schedule.num_train_timesteps
    # diffusers' stand-in for an infinite sigma may be smaller than the one before it, and times read off such a
    # schedule go back and forth; churn adds noise on purpose. Elsewhere a row is never told a noisier time than the one
    # before, but for rounding.
    levels = schedule.levels
    if (len(levels) < 2 or levels[-1] > levels[-2]) and not options.get("S_churn"):
        assert np.all(np.diff(table.time) <= 1.0)
    assert table.slots <= row.MAX_SLOTS
    words = pack(table, 1, dtype=torch.float64)[0]
    # Integer words hold -1, whose bits are a NaN's, and a clip may be inf: look at the others.
    integers = [row.CLIP, row.SLOT, row.NOISE_STEP, row.NEXT]
    assert np.isfinite(np.delete(words.numpy(), integers, axis=1)).all()
    channels = 4 if table.learned else 2

    def network(x: np.ndarray, t: float) -> np.ndarray:
        return np.full((1, channels, 1, 3), 0.25)

    rng = np.random.default_rng(0)
    out = run(table, network, rng.normal(size=(1, 2, 1, 3)), rng.normal(size=(len(table), 1, 2, 1, 3)))
    assert np.isfinite(out).all()


@pytest.mark.parametrize("options", [{}, {"eta": 0.5}])
@pytest.mark.parametrize(("steps", "spacing"), [(50, "leading"), (7, "leading"), (50, "trailing")])
def test_ddim_strides_agree_where_diffusers_visits_what_it_steps_to(
    steps: int, spacing: str, options: dict[str, Any]
) -> None:
    ours = solver_table("ddim", COSINE, steps, timestep_spacing=spacing, **options)
    theirs = solver_table("ddim", COSINE, steps, timestep_spacing=spacing, constant_stride=True, **options)
    np.testing.assert_array_equal(ours.a, theirs.a)


def test_constant_stride_leaves_noise_behind() -> None:
    """x_0 = 0 and a perfect network: the sample must end at 0, and with diffusers' stride it does not."""
    schedule = NoiseSchedule(prediction_type="sample")
    ends = {}
    for stride in (False, True):
        table = solver_table(
            "ddim", schedule, 600, timestep_spacing="linspace", constant_stride=stride, set_alpha_to_one=False
        )
        ends[stride] = run(table, lambda x, t: 0 * x, np.ones((1, 1, 1)), np.zeros((600, 1, 1, 1))).item()
    sigma_0 = np.sqrt(1 - schedule.alphas_cumprod[0]) / np.sqrt(1 - schedule.alphas_cumprod[-1])
    np.testing.assert_allclose(ends[False], sigma_0, rtol=1e-12)
    assert ends[True] > 3 * sigma_0


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_ddpm_ends_without_noise(variance_type: str, spacing: str) -> None:
    table = solver_table("ddpm", COSINE, 10, variance_type=variance_type, timestep_spacing=spacing)
    assert table.a[-1, row.Z] == 0
    assert np.all(table.a[:-1, row.Z] > 0)
    np.testing.assert_allclose(table.a[-1, [row.X, row.X0]], [0, 1], atol=1e-15)


def test_log_variances_are_the_variances() -> None:
    """fixed_large_log has no oracle in diffusers: it takes the square root of a negative logarithm."""
    for kind in ("fixed_small", "fixed_large"):
        plain = solver_table("ddpm", COSINE, 10, variance_type=kind)
        log = solver_table("ddpm", COSINE, 10, variance_type=f"{kind}_log")
        np.testing.assert_array_equal(plain.a, log.a)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variance_against_respaced_betas(variance_type: str) -> None:
    """Nichol & Dhariwal 2021, written with betas of the shortened process, as in their own code."""
    schedule = NoiseSchedule(prediction_type="epsilon")
    table = solver_table(
        "ddpm", schedule, 5, variance_type=variance_type, clip_sample=False, timestep_spacing="linspace"
    )
    assert table.learned == {"learned_range": 1, "learned": 2}[variance_type]
    network = random_network(3, 2, variance_type)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(3, 2, 4, 4)))
    noise = torch.from_numpy(rng.normal(size=(5, 3, 2, 4, 4)))
    found = run(table, network, x, noise)

    times = [0, 250, 500, 749, 999]
    bars = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[times]
    betas = 1.0 - bars / np.append(1.0, bars[:-1])
    for i, n in enumerate(reversed(range(5))):
        before = bars[n - 1] if n else 1.0
        epsilon, v = network(x, float(times[n])).chunk(2, 1)
        mean = (x - betas[n] / np.sqrt(1 - bars[n]) * epsilon) / np.sqrt(1 - betas[n])
        if n == 0:
            x = mean
            break
        posterior = betas[n] * (1 - before) / (1 - bars[n])
        log_variance = (v + 1) / 2 * np.log(betas[n]) + (1 - (v + 1) / 2) * np.log(posterior)
        std = v.sqrt() if variance_type == "learned" else (log_variance / 2).exp()
        x = mean + std * noise[i]
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


def test_defaults_of_the_small_models_are_good() -> None:
    """20 steps of dpm++2m on the cosine schedule: float32 rows, moderate numbers, the exact end."""
    table = solver_table("dpm++2m", COSINE, 20)
    assert table.slots == 1
    assert not table.stochastic
    assert np.abs(table.a).max() < 2.5
    assert table.a[-1].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    rows, _ = pack(table, 1)
    np.testing.assert_allclose(rows[:, row.A : row.A + 8].numpy(), table.a, rtol=1e-7)
