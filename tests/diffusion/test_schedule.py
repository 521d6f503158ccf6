"""Noise schedules and timesteps: diffusers in float64, closed forms, and what must be refused."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.diffusion import NoiseSchedule, timesteps
from tests.refusals import refused

from .diffusers_oracle import in_float64, scheduler

BETAS: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"num_train_timesteps": 37, "beta_start": 0.01, "beta_end": 0.3},
    {"num_train_timesteps": 4, "trained_betas": (0.1, 0.2, 0.2, 0.5)},
]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("config", BETAS, ids=lambda c: c.get("beta_schedule", f"linear-{len(c)}"))
def test_betas_equal_diffusers(config: dict, zero_snr: bool) -> None:
    schedule = NoiseSchedule(**config, rescale_betas_zero_snr=zero_snr)
    theirs = scheduler("ddpm", schedule)[0]
    # Rescaled, the last values of sqrt(alphas_cumprod) are differences of numbers about 1e4 times larger.
    atol = 1e-13 if zero_snr else 1e-15
    np.testing.assert_allclose(schedule.betas, theirs.betas.numpy(), rtol=0, atol=atol)
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=0, atol=1e-15)
    assert schedule.alphas_cumprod.dtype == np.float64
    assert bool(schedule.alphas_cumprod[-1] == 0.0) == zero_snr


def test_cosine_follows_its_closed_form() -> None:
    """alphas_cumprod[t] = f(t + 1) / f(0), Nichol & Dhariwal 2021 eq. 17, until the cap on beta acts."""
    schedule = NoiseSchedule(beta_schedule="squaredcos_cap_v2")
    f = np.cos((np.arange(1, 1000) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    exact = f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1], exact, rtol=1e-9)


def test_config_round_trip_through_json() -> None:
    for config in BETAS:
        schedule = NoiseSchedule(**config, prediction_type="v_prediction")
        back = NoiseSchedule.from_config(json.loads(json.dumps(schedule.to_config())))
        assert back == schedule
        assert hash(back) == hash(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"beta_shedule": "linear"}, ["beta_shedule", "known"]),
        ({"beta_schedule": "cosine"}, ["beta_schedule", "squaredcos_cap_v2", "cosine"]),
        ({"beta_schedule": 3}, ["beta_schedule", "str", "3"]),
        ({"prediction_type": "flow"}, ["prediction_type", "v_prediction", "flow"]),
        ({"num_train_timesteps": 0}, ["num_train_timesteps", "1", "0"]),
        ({"num_train_timesteps": 10**9}, ["num_train_timesteps", "100000"]),
        ({"num_train_timesteps": 1000.0}, ["num_train_timesteps", "int", "1000.0"]),
        ({"num_train_timesteps": True}, ["num_train_timesteps", "int", "True"]),
        ({"beta_start": "0.1"}, ["beta_start", "float"]),
        ({"beta_start": float("nan")}, ["beta_start", "finite"]),
        ({"beta_start": 0.0}, ["beta_start", "0.0"]),
        ({"beta_end": 1.0}, ["beta_end", "1.0"]),
        ({"beta_end": -0.1}, ["beta_end", "-0.1"]),
        ({"beta_end": 0.9}, ["beta_end", "alphas_cumprod"]),
        ({"beta_start": 1e-20}, ["beta_start", "float64"]),
        ({"trained_betas": [0.1, 0.2]}, ["trained_betas", "1000", "2"]),
        ({"trained_betas": [0.1, 2.0], "num_train_timesteps": 2}, ["trained_betas", "2.0"]),
        ({"trained_betas": [0.1, None], "num_train_timesteps": 2}, ["trained_betas", "NoneType"]),
        ({"trained_betas": "0.1", "num_train_timesteps": 3}, ["trained_betas", "list"]),
        ({"rescale_betas_zero_snr": 1}, ["rescale_betas_zero_snr", "bool"]),
        ({"rescale_betas_zero_snr": True, "num_train_timesteps": 1}, ["rescale_betas_zero_snr", "2"]),
    ],
)
def test_untrusted_config_is_refused(config: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        NoiseSchedule.from_config(config)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_training_helpers_invert_each_other(prediction_type: str, dtype: torch.dtype) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type, beta_schedule="squaredcos_cap_v2")
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.tensor([0, 1, 250, 500, 900])
    bar = torch.tensor(schedule.alphas_cumprod)[t].view(-1, 1, 1, 1)
    x = schedule.add_noise(x0, noise, t)
    F = schedule.target(x0, noise, t)
    unit = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 0.01}[dtype]
    torch.testing.assert_close(
        x.double(), bar.sqrt() * x0.double() + (1 - bar).sqrt() * noise.double(), rtol=unit, atol=unit
    )
    assert x.dtype == F.dtype == dtype
    assert x.is_contiguous()
    recovered = schedule.x0_from(F, x, t)
    assert recovered.dtype == dtype
    # Errors of x and F are divided by alpha, 0.15 at t = 900, where the prediction is the noise.
    torch.testing.assert_close(recovered, x0, rtol=40 * unit, atol=40 * unit)


def test_velocity_equals_diffusers() -> None:
    schedule = NoiseSchedule(prediction_type="v_prediction")
    oracle, module, _ = scheduler("ddpm", schedule)
    x0, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    t = torch.tensor([0, 10, 500, 999])
    with in_float64(module):
        torch.testing.assert_close(schedule.target(x0, noise, t), oracle.get_velocity(x0, noise, t))
        torch.testing.assert_close(schedule.add_noise(x0, noise, t), oracle.add_noise(x0, noise, t))


def test_training_helpers_refuse_what_does_not_fit() -> None:
    schedule = NoiseSchedule()
    x = torch.zeros(2, 3)
    for t in (torch.tensor([0, 1000]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.tensor([0])):
        with refused(ValueError, "t"):
            schedule.add_noise(x, x, t)
    with refused(ValueError, "x0, noise"):
        schedule.add_noise(x, x[:1], torch.tensor([0, 1]))
    with refused(ValueError, "rescale_betas_zero_snr", "no"):
        NoiseSchedule(rescale_betas_zero_snr="no")  # type: ignore[arg-type]
    with refused(ValueError, "prediction_type"):
        NoiseSchedule(rescale_betas_zero_snr=True).x0_from(x, x, torch.tensor([0, 1]))


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++2m"])
def test_timesteps_equal_diffusers(name: str, spacing: str) -> None:
    schedule = NoiseSchedule()
    oracle, module, _ = scheduler(name, schedule, timestep_spacing=spacing)
    refused = []
    for steps in range(1, 1001):
        with in_float64(module):
            oracle.set_timesteps(steps)
        theirs = oracle.timesteps.numpy()
        if theirs[-1] == -1:  # diffusers' trailing overruns by rounding of np.arange
            theirs = theirs[:-1]
        try:
            ours = timesteps(1000, steps, spacing, skip_end=name == "dpm++2m")
        except ValueError:
            refused.append(steps)
            assert len(np.unique(theirs)) < steps
            continue
        np.testing.assert_array_equal(ours, theirs)
    assert refused == ([1000] if name == "dpm++2m" and spacing != "trailing" else [])


def test_steps_offset() -> None:
    np.testing.assert_array_equal(timesteps(1000, 4, "leading", 1), [751, 501, 251, 1])
    with refused(ValueError, "steps_offset", "1000"):
        timesteps(1000, 1000, "leading", 1)
    with refused(ValueError, "timestep_spacing"):
        timesteps(1000, 4, "lagging")
