"""Song's SDEs as processes: their marginals solve the equations for mean and variance, and levels invert times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import SOLVERS, VESDE, VPSDE, SubVPSDE, process_from_config, run
from fastgen.errors import ConfigError
from tests.refusals import refused

from .process_oracles import SDES, marginal


@pytest.mark.parametrize("process", SDES, ids=lambda p: p.name)
def test_marginals_solve_the_sde(process: Any) -> None:
    """d alpha / dt = f alpha and d sigma^2 / dt = 2 f sigma^2 + g^2, by central differences.

    The second difference's error is h^2 / 6 times the third derivative, below 2e4 times the value here.
    """
    h = 1e-5
    for t in (0.01, 0.2, 0.5, 0.9):
        before, now, after = (process.at(t + d) for d in (-h, 0.0, h))
        f, g = process.drift(t), process.diffusion(t)
        slope = (after.alpha - before.alpha) / (2 * h)
        assert slope == pytest.approx(f * now.alpha, rel=1e-5, abs=1e-9)
        slope = (after.sigma**2 - before.sigma**2) / (2 * h)
        assert slope == pytest.approx(2 * f * now.sigma**2 + g**2, rel=1e-5)


@pytest.mark.parametrize("process", SDES, ids=lambda p: p.name)
def test_points_by_time_and_by_level_agree(process: Any) -> None:
    for t in (1e-3, 0.1, 0.5, 1.0):
        point = process.at(t)
        alpha, sigma = marginal(process, t)
        assert point.alpha == pytest.approx(alpha, rel=1e-13)
        assert point.sigma == pytest.approx(sigma, rel=1e-13)
        again = process.point(point.level)
        np.testing.assert_allclose(
            [again.alpha, again.sigma, again.time, *again.x0],
            [point.alpha, point.sigma, point.time, *point.x0],
            rtol=1e-12,
        )


@pytest.mark.parametrize("cls", [VPSDE, SubVPSDE, VESDE])
def test_prediction_types_say_the_same(cls: Any) -> None:
    """From one x_0 and one epsilon every kind of output gives them back."""
    x0, epsilon = 0.3, -1.2
    for kind in cls().prediction_types:
        point = cls(prediction_type=kind).at(0.4)
        x = point.alpha * x0 + point.sigma * epsilon
        output = {
            "epsilon": epsilon,
            "score": -epsilon / point.sigma,
            "sample": x0,
            "v_prediction": point.alpha * epsilon - point.sigma * x0,
        }[kind]
        assert point.x0[0] * x + point.x0[1] * output == pytest.approx(x0, rel=1e-12)
        assert point.noise[0] * x + point.noise[1] * output == pytest.approx(epsilon, rel=1e-12)


def test_times() -> None:
    assert VPSDE().at(1.0).time == 999.0  # score_sde's labels
    assert VPSDE(time="unit").at(0.25).time == 0.25
    assert VESDE().at(1.0).time == 50.0
    assert VESDE(time="log_sigma").at(1.0).time == pytest.approx(np.log(50.0))
    assert VESDE(time="unit").at(0.25).time == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("process", SDES, ids=lambda p: p.name)
def test_the_reverse_sde_draws_from_the_data(process: Any) -> None:
    """Gaussian data N(mu, s^2) and its exact score: mean and variance of the end, exactly, as the run is affine.

    The discretisation is of first order: its error halves with the step.
    """
    mu, s = 0.4, 0.6

    def network(x: np.ndarray, told: float) -> np.ndarray:
        t = process.time_of(told) if isinstance(process, VESDE) else told / 999.0
        alpha, sigma = marginal(process, t)
        exact = -(x - alpha * mu) / (alpha**2 * s**2 + sigma**2)
        return exact if isinstance(process, VESDE) else -exact * sigma

    errors = []
    for steps in (200, 400):
        table = SOLVERS["euler_maruyama"](process, steps)
        basis = np.eye(steps + 1).reshape(steps + 1, 1, 1, steps + 1)
        zero = np.zeros_like(basis[0])
        mean = run(table, network, zero, [zero] * steps)
        weights = run(table, network, table.initial_scale * basis[0], list(basis[1:])) - mean
        errors.append([abs(float(mean.ravel()[0]) - mu), abs(float((weights**2).sum()) - s**2)])
    assert np.all(np.array(errors[1]) < 0.05)
    assert max(errors[1]) < 0.6 * max(errors[0])


@pytest.mark.parametrize(
    ("values", "about"),
    [
        ({"process": "vp_sde", "beta_min": 30.0}, ("beta_min",)),
        ({"process": "ve", "sigma_min": 80.0}, ("sigma_min",)),
        (
            {"process": "subvp", "prediction_type": "v_prediction"},
            ("process subvp: prediction_type", "prediction_type"),
        ),
        ({"process": "vp_sde", "sampling_eps": 0.0}, ("process vp_sde: sampling_eps", "sampling_eps")),
    ],
)
def test_configurations_are_checked(values: dict[str, Any], about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        process_from_config(values)


@pytest.mark.parametrize("process", SDES, ids=lambda p: p.name)
def test_configuration_survives_a_round_trip(process: Any) -> None:
    assert process_from_config(process.to_config()) == process
