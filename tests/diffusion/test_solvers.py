"""Options of the solvers, what is refused, learned variances, and where we leave diffusers on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.diffusion import SOLVERS, NoiseSchedule, pack, run, solver_table
from fastgen_kernels.reverse_step import row

from .diffusers_oracle import evaluations, random_network

COSINE = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def test_options_are_listed_with_types_defaults_and_ranges() -> None:
    listed = {o.name: o for o in SOLVERS["ddim"].options}
    assert listed["eta"].default == 0.0
    assert (listed["eta"].type, listed["eta"].allowed) == ("float", "0.0 to 1000.0")
    assert listed["timestep_spacing"].allowed == "linspace | leading | trailing"
    assert listed["set_alpha_to_one"].allowed == "True | False"
    for name, solver in SOLVERS.items():
        assert solver.name == name
        defaults = {o.name: o.default for o in solver.options}
        np.testing.assert_array_equal(solver(COSINE, 5).a, solver(COSINE, 5, **defaults).a)


@pytest.mark.parametrize(
    ("name", "steps", "options", "words"),
    [
        ("unipc", 10, {}, ["solver", "ddpm, ddim, dpm++2m, euler, heun", "unipc"]),
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
        ("ddpm", 10, {"steps_offset": 150}, ["steps_offset", "150"]),
        ("ddpm", 10, {"thresholding": True}, ["thresholding", "not available", "clip_sample"]),
        ("dpm++2m", 10, {"sample_max_value": 1.0}, ["sample_max_value", "not available"]),
        ("dpm++2m", 10, {"solver_type": "bh2"}, ["solver_type", "midpoint, heun", "bh2"]),
        ("dpm++2m", 10, {"solver_order": 3}, ["solver_order", "known"]),
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


@pytest.mark.parametrize("name", SOLVERS)
def test_epsilon_at_zero_terminal_snr_is_refused_only_where_it_is_used(name: str) -> None:
    schedule = NoiseSchedule(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match=r"epsilon cannot be used at t = 999.*v_prediction"):
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
COMMON = {
    "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
    "steps_offset": st.integers(0, 2),
    "clip_sample": st.booleans(),
    "clip_sample_range": st.floats(0.1, 10),
}
OWN: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "ddpm": {
        "variance_type": st.sampled_from(
            ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]
        )
    },
    "ddim": {
        "eta": st.floats(0, 1),
        "set_alpha_to_one": st.booleans(),
        "use_clipped_model_output": st.booleans(),
        "constant_stride": st.booleans(),
    },
    "dpm++2m": {
        "solver_type": st.sampled_from(["midpoint", "heun"]),
        "lower_order_final": st.booleans(),
        "euler_at_final": st.booleans(),
        "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
    },
}
SIGMAS = {
    "use_karras_sigmas": st.booleans(),
    "use_exponential_sigmas": st.booleans(),
    "use_beta_sigmas": st.booleans(),
}
OWN["heun"] = SIGMAS
OWN["euler"] = SIGMAS | {
    "sigma_min": st.none() | st.floats(1e-3, 0.1),
    "sigma_max": st.none() | st.floats(1.0, 1e3),
    "interpolation_type": st.sampled_from(["linear", "log_linear"]),
    "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
}
REASONS = (
    "visit a timestep twice",
    "moves the first",
    "epsilon cannot be used",
    "at most one of them",
    "no longer fall",
    "must be below sigma_max",
    "only with one of use_karras_sigmas",
)


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_valid_options_give_finite_tables(name: str, data: st.DataObject) -> None:
    schedule = data.draw(SCHEDULES)
    steps = data.draw(st.integers(1, schedule.num_train_timesteps))
    options = data.draw(st.fixed_dictionaries({}, optional=COMMON | OWN[name]))
    try:
        table = solver_table(name, schedule, steps, **options)
    except ValueError as error:
        if not any(reason in str(error) for reason in REASONS):
            raise
        return
    assert len(table) == evaluations(name, steps)
    # Heun stays at a time for two rows; a sigma beyond the schedule has the time of its end. diffusers' stand-in for
    # an infinite sigma may be smaller than the one before it, and times read off such a schedule go back and forth.
    levels = schedule.levels
    if name not in ("euler", "heun"):
        assert np.all(np.diff(table.time) < 0)
    elif len(levels) < 2 or levels[-1] > levels[-2]:
        assert np.all(np.diff(table.time) <= 0)
    assert 0 <= table.time.min() <= table.time.max() < schedule.num_train_timesteps
    assert table.slots <= 1
    unbounded = np.delete(
        pack(table, 1, dtype=torch.float64)[0].view(torch.float64).numpy(), row.CLIP, axis=1
    )
    # Integer words hold -1, whose bits are a NaN's: look at the real ones only.
    integers = [w - (w > row.CLIP) for w in (row.SLOT, row.NOISE_STEP, row.NEXT)]
    assert np.isfinite(np.delete(unbounded, integers, axis=1)).all()
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
