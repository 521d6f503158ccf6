"""PNDM's family as straight loops, consistency models, and what the multistep and distilled solvers refuse."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.diffusion import EDM, VESDE, VPSDE, NoiseSchedule, SubVPSDE, run, solver_table
from fastgen.diffusion.consistency_model import ConsistencyModel
from fastgen.diffusion.distilled import distilled_timesteps
from fastgen.diffusion.flow_matching import FlowMatching
from fastgen.diffusion.processes import process_from_config
from fastgen.diffusion.sigmas import SigmaOptions, sigma_points
from fastgen.diffusion.timesteps import timesteps
from fastgen.errors import ConfigError
from fastgen_kernels.reverse_step import row
from tests.refusals import refused

from .diffusers_oracle import deviation, random_network
from .golden_multistep import ADAMS, adams_bashforth

V = NoiseSchedule(prediction_type="v_prediction")


def start() -> Tensor:
    return torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def ours(name: str, process: Any, steps: int, **options: Any) -> Tensor:
    table = solver_table(name, process, steps, **options)
    return run(
        table, random_network(1, 2), table.initial_scale * start(), torch.zeros(len(table), 1, 2, 4, 4)
    )


def noise_at(x: Tensor, t: int) -> Tensor:
    alpha, sigma = V.alpha_sigma(t)
    return sigma * x + alpha * random_network(1, 2)(x, float(t))


def transfer(x: Tensor, epsilon: Tensor, t: int, s: int) -> Tensor:
    """DDIM's step: the clean sample that epsilon means, noised again."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = V.alpha_sigma(t), V.alpha_sigma(s)
    return alpha_s * (x - sigma_t * epsilon) / alpha_t + sigma_s * epsilon


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prk_steps", [0, 1, 2, 3, None])
def test_pseudo_numerical_methods(prk_steps: int | None, spacing: str) -> None:
    """Liu et al. 2022, algorithm 2, from timestep to timestep; without Runge-Kutta an improved Euler step is first."""
    first = 9 // 5 if prk_steps is None else prk_steps
    visited = [*timesteps(1000, 9, spacing).tolist(), -1]
    x, past = start(), []
    for i, (t, s) in enumerate(itertools.pairwise(visited)):
        e = noise_at(x, t)
        past.append(e)
        if i < first:
            middle = (t + s) // 2
            e2 = noise_at(transfer(x, e, t, middle), middle)
            e3 = noise_at(transfer(x, e2, t, middle), middle)
            e4 = noise_at(transfer(x, e3, t, s), s)
            x = transfer(x, (e + 2 * e2 + 2 * e3 + e4) / 6, t, s)
        elif i == 0:
            x = transfer(x, (e + noise_at(transfer(x, e, t, s), s)) / 2, t, s)
        else:
            weights = ADAMS[min(len(past), 4) - 1]
            x = transfer(x, sum(w * p for w, p in zip(weights, past[::-1], strict=False)), t, s)
    options = {"timestep_spacing": spacing, "set_alpha_to_one": True}
    found = ours("pndm", V, 9, prk_steps=prk_steps, **options)
    assert deviation(found.numpy(), x.numpy()) < 1e-12
    if first == 0:
        assert torch.equal(found, ours("plms", V, 9, **options))


def test_runge_kutta_takes_at_most_half_of_the_evaluations() -> None:
    for steps in range(1, 40):
        table = solver_table("pndm", V, steps)
        first = (len(table) - steps) // 3
        assert first <= 3
        assert 4 * first <= len(table) / 2
        more = solver_table("pndm", V, steps, prk_steps=min(first + 1, 3)) if steps > 3 else None
        assert first == 3 or more is None or 4 * (first + 1) > len(more) / 2
    assert len(solver_table("pndm", V, 4, as_diffusers=True, sum_outputs=False)) == 13


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("process", [V, FlowMatching(shift=2.0)], ids=["noise-schedule", "flow"])
def test_ipndm(process: Any, order: int) -> None:
    points = sigma_points(process, 8, SigmaOptions())
    loop = adams_bashforth(
        process, 8, random_network(1, 2), start() * points.initial_scale, solver_order=order
    )
    # The loop's (z - x_0) / w loses the digits of z / x_0, on a noise schedule at most 1 / alpha of the first point's.
    limit = 1e-12 if isinstance(process, FlowMatching) else 1e-15 * points.levels[0]
    assert deviation(ours("ipndm", process, 8, solver_order=order).numpy(), loop.numpy()) < limit


def test_consistency_models() -> None:
    model = ConsistencyModel(sigma_data=0.7)
    assert process_from_config(model.to_config()) == model
    boundary = model.point(model.sigma_min)
    assert boundary.x0 == (1.0, 0.0)  # f(x; sigma_min) = x
    point = model.point(3.0)
    assert point.noise == pytest.approx(((1 - point.x0[0]) / 3.0, -point.x0[1] / 3.0), rel=1e-14)
    assert point.time == 250 * math.log(3.0)
    assert model.natural(40)[[0, -1]] == pytest.approx([80.0, 0.002], rel=1e-12)
    with refused(ConfigError, "sigma_min", "3.0", "sigma_max"):
        ConsistencyModel(sigma_min=3.0, sigma_max=2.0)
    with refused(ConfigError, "steps", "40", "41"):
        solver_table("consistency", model, 41)
    with refused(ConfigError, "timestep_spacing"):
        solver_table("consistency", model, 4, timestep_spacing="trailing")


def test_consistency_steps_of_any_process() -> None:
    """x' = alpha' x_0 + sigma' z."""
    schedule = NoiseSchedule()
    table = solver_table("consistency", schedule, 5, s_noise=0.5)
    ends = sigma_points(schedule, 5, SigmaOptions()).all[1:]
    assert table.a[:, 1] == pytest.approx([point.alpha for point in ends])
    assert table.a[:, 3] == pytest.approx([0.5 * point.sigma for point in ends])
    assert not np.any(table.a[:, [0, 2]])


def test_distilled_timesteps() -> None:
    assert distilled_timesteps(1000, 4, 50) == [999, 759, 499, 259]
    assert distilled_timesteps(1000, 1, 50) == [999]
    assert distilled_timesteps(7, 3, 3) == [5, 3, 1]


@pytest.mark.parametrize(
    ("name", "steps", "options", "about"),
    [
        ("lcm", 51, {}, ("steps", "original_inference_steps", "50")),
        (
            "tcd",
            4,
            {"original_inference_steps": 1001},
            ("original_inference_steps", "num_train_timesteps"),
        ),
        ("tcd", 4, {"eta": 1.1}, ("solver tcd: eta", "0.0", "1.0")),
        ("pndm", 3, {"prk_steps": 3}, ("steps", "num_train_timesteps", "500")),
        ("pndm", 3, {"as_diffusers": True}, ("steps", "plms")),
        ("pndm", 501, {}, ("steps",)),
        ("pndm", 9, {"prk_steps": 4}, ("solver pndm: prk_steps", "3")),
        ("plms", 9, {"prk_steps": 1}, ("solver plms", "prk_steps")),
        ("unipc", 9, {"solver_order": 5}, ("solver unipc: solver_order", "solver_order")),
        ("unipc", 9, {"solver_type": "bh3"}, ("solver unipc: solver_type", "solver_type")),
        (
            "unipc",
            9,
            {"disable_corrector": [-1]},
            ("solver unipc: disable_corrector[0]", "disable_corrector", "[0]"),
        ),
        ("unipc", 9, {"sigma_min": 0.1}, ("sigma_min, sigma_max",)),
        ("deis", 9, {"solver_order": 4}, ("solver deis: solver_order", "solver_order")),
        ("sa", 9, {"tau": -1.0}, ("solver sa: tau", "0.0", "10.0")),
        ("deis", 1000, {"timestep_spacing": "linspace"}, ("steps",)),
    ],
)
def test_refusals(name: str, steps: int, options: dict[str, Any], about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        solver_table(name, NoiseSchedule(), steps, **options)


def test_other_processes_are_refused_where_timesteps_are_needed() -> None:
    for name in ("plms", "pndm", "lcm", "tcd"):
        with refused(ConfigError, "solver", name):
            solver_table(name, FlowMatching(), 8)
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    with refused(ConfigError, "prediction_type", "alphas_cumprod"):
        solver_table("plms", schedule, 8, timestep_spacing="trailing")


def test_slots() -> None:
    """No more history than the methods look back at."""
    for name, options, slots in (
        ("unipc", {"solver_order": 1}, 1),
        ("unipc", {"solver_order": 4}, 4),
        ("deis", {"solver_order": 1}, 1),
        ("deis", {"solver_order": 3}, 2),
        ("plms", {}, 3),
        ("pndm", {}, 4),
        ("ipndm", {"solver_order": 1}, 0),
        ("ipndm", {}, 3),
        ("sa", {"predictor_order": 4, "corrector_order": 2}, 4),
        ("sa", {"predictor_order": 1, "corrector_order": 3}, 2),
        ("lcm", {}, 0),
        ("tcd", {}, 0),
    ):
        assert solver_table(name, NoiseSchedule(), 20, **options).slots == slots, (name, options)


def test_sa_adds_noise_where_it_says() -> None:
    """Between a fifth and four fifths of the timesteps (diffusers: 200 and 800 of 1000), or everywhere."""
    for T in (100, 1000, 4000):
        table = solver_table("sa", NoiseSchedule(num_train_timesteps=T, beta_end=0.02), 20)
        noisy = table.a[:, row.Z] != 0.0
        np.testing.assert_array_equal(noisy, (table.time >= 0.2 * T) & (table.time <= 0.8 * T))
        assert noisy.any()
    for process in (EDM(), FlowMatching(), FlowMatching(time="unit"), VPSDE(), SubVPSDE(), VESDE()):
        assert np.all(solver_table("sa", process, 10).a[:, row.Z] != 0.0)
        with refused(ConfigError, "tau_start, tau_end"):
            solver_table("sa", process, 10, tau_start=2e4, tau_end=8e4)
        assert not solver_table("sa", process, 10, tau=0.0, tau_start=2e4, tau_end=8e4).stochastic
