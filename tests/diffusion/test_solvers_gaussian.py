"""Gaussian data, where everything is known: the best network, the exact flow, the exact distribution.

For x_0 ~ N(mu, s^2) the state x_t is N(alpha mu, S_t^2) with S_t^2 = alpha^2 s^2 + sigma^2, the best estimate
of x_0 is mu + alpha s^2 (x - alpha mu) / S_t^2, and the probability flow keeps (x - alpha mu) / S_t (Song et
al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3). No other project's code is involved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import NoiseSchedule, Table, run, solver_table

MU, S = 0.4, 0.6
T = 9601  # so that 20, 40, 80, ... steps divide T - 1, and no timestep is rounded


def best_network(schedule: NoiseSchedule):
    def network(x: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = schedule.alpha_sigma(round(t))
        x0 = MU + alpha * S**2 * (x - alpha * MU) / (alpha**2 * S**2 + sigma**2)
        epsilon = (x - alpha * x0) / sigma
        return {"sample": x0, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0}[
            schedule.prediction_type
        ]

    return network


def spread(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha * MU, float(np.hypot(alpha * S, sigma))


def errors(name: str, schedule: NoiseSchedule, counts: list[int], **options: Any) -> np.ndarray:
    """Largest error of the end point against the exact flow to t = 0, for each step count."""
    x = np.linspace(-2.5, 2.5, 11).reshape(1, 1, -1)
    start, end = spread(schedule, T - 1), spread(schedule, 0)
    exact = end[0] + end[1] * (x - start[0]) / start[1]
    found = []
    for count in counts:
        table = solver_table(name, schedule, count, timestep_spacing="linspace", clip_sample=False, **options)
        found.append(np.abs(run(table, best_network(schedule), x, [x] * count) - exact).max())
    return np.array(found)


def even_log_snr(prediction_type: str) -> NoiseSchedule:
    """log(alpha / sigma) falls evenly from 3 to -4: even timesteps are even steps for the solvers."""
    alphas_cumprod = 1.0 / (1.0 + np.exp(-2.0 * np.linspace(3.0, -4.0, T)))
    betas = 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    return NoiseSchedule(num_train_timesteps=T, trained_betas=tuple(betas), prediction_type=prediction_type)


SCHEDULES = {kind: even_log_snr(kind) for kind in ("epsilon", "sample", "v_prediction")}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_ddim_converges_at_first_order(schedule: NoiseSchedule) -> None:
    # A visit at t = 0 and no step beyond it: n + 1 evaluations make n intervals.
    error = errors("ddim", schedule, [41, 81, 161, 321], set_alpha_to_one=False)
    ratio = error[:-1] / error[1:]
    assert np.all((ratio > 1.9) & (ratio < 2.1)), ratio
    assert error[-1] < 0.01


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_dpm_solver_converges_at_second_order(schedule: NoiseSchedule, solver_type: str) -> None:
    options = {"final_sigmas_type": "sigma_min", "lower_order_final": False, "solver_type": solver_type}
    error = errors("dpm++2m", schedule, [40, 80, 160, 320], **options)
    ratio = error[:-1] / error[1:]
    assert np.all((ratio > 3.8) & (ratio < 4.2)), ratio
    assert error[-1] < 1e-4


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_sigma_solvers_converge_at_their_order(schedule: NoiseSchedule, name: str, order: int) -> None:
    """The last step goes from t = 0 to sigma = 0 and ends at the best estimate of x_0 there."""
    x = np.linspace(-2.5, 2.5, 11).reshape(1, 1, -1)
    start, end = spread(schedule, T - 1), spread(schedule, 0)
    at_zero = end[0] + end[1] * (x - start[0]) / start[1]
    alpha, sigma = schedule.alpha_sigma(0)
    network_output = best_network(schedule)(at_zero, 0.0)
    exact = {
        "sample": network_output,
        "epsilon": (at_zero - sigma * network_output) / alpha,
        "v_prediction": alpha * at_zero - sigma * network_output,
    }[schedule.prediction_type]
    error = []
    for count in (41, 81, 161, 321):
        # Even in log(sigma), where this schedule is even in time: the times need no interpolation.
        levels = {"timestep_spacing": "linspace", "use_exponential_sigmas": True}
        table = solver_table(name, schedule, count, **levels)
        error.append(np.abs(run(table, best_network(schedule), x, [x] * len(table)) - exact).max())
    ratio = np.array(error[:-1]) / np.array(error[1:])
    assert np.all(np.abs(ratio / 2**order - 1) < 0.06), ratio
    assert error[-1] < (0.01 if order == 1 else 1e-4)


def test_twenty_steps_beat_ddim_by_far() -> None:
    schedule = SCHEDULES["epsilon"]
    second = errors("dpm++2m", schedule, [20], final_sigmas_type="sigma_min")
    first = errors("ddim", schedule, [21], set_alpha_to_one=False)
    assert second < first / 4


def moments(table: Table, schedule: NoiseSchedule) -> tuple[float, float]:
    """Mean and variance of the end of a run with the best network: an affine map, so two runs tell."""
    count = len(table)
    size = count + 1  # x_T and every z, all independent standard normals
    basis = np.eye(size).reshape(size, 1, 1, size)
    network = best_network(schedule)
    zero = np.zeros_like(basis[0])
    mean = run(table, network, zero, [zero] * count)
    weights = run(table, network, basis[0], list(basis[1:])) - mean
    return float(mean.ravel()[0]), float((weights**2).sum())


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_many_ddpm_steps_draw_from_the_data(variance_type: str) -> None:
    found = []
    for count in (500, 1000, 2000):
        schedule = NoiseSchedule(num_train_timesteps=count, beta_start=0.1 / count, beta_end=20 / count)
        table = solver_table("ddpm", schedule, count, variance_type=variance_type, clip_sample=False)
        found.append(moments(table, schedule))
    mean, variance = np.array(found).T
    # The start is N(0, 1), not N(alpha_T mu, S_T^2), and steps have a length: first order in 1 / count.
    np.testing.assert_allclose(mean, MU, atol=0.01)
    np.testing.assert_allclose(variance, S**2, rtol=0.03)
    assert abs(variance[-1] - S**2) < 0.6 * abs(variance[0] - S**2)


def test_ddim_with_eta_one_draws_from_the_data_too() -> None:
    schedule = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    for eta in (0.0, 0.5, 1.0):
        table = solver_table("ddim", schedule, 1000, eta=eta, clip_sample=False)
        mean, variance = moments(table, schedule)
        assert abs(mean - MU) < 0.01
        assert abs(variance - S**2) < 0.02 * S**2


def test_ddpm_equals_ddim_with_eta_one() -> None:
    """Song et al. 2021, section 4.1: on the same timesteps the two are one process, until the last row."""
    schedule = NoiseSchedule(prediction_type="sample")
    ancestral = solver_table("ddpm", schedule, 50)
    implicit = solver_table("ddim", schedule, 50, eta=1.0, use_clipped_model_output=True)
    np.testing.assert_allclose(ancestral.a, implicit.a, rtol=0, atol=1e-12)
