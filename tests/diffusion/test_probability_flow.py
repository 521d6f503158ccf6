"""The probability flow of every process: its slope, against paths of Gaussian data, which are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastgen import ConfigError
from fastgen.diffusion import process_from_config
from fastgen.diffusion.probability_flow import ProbabilityFlow, angle
from tests.refusals import refused

from .mixtures import PROCESSES, name

MU, S = 0.4, 0.6


@pytest.mark.parametrize("values", PROCESSES, ids=name)
def test_slope_is_that_of_gaussian_data(values: dict[str, Any]) -> None:
    """For x_0 ~ N(mu, s^2) a path is y(u) = cos mu + sqrt(cos^2 s^2 + sin^2) c (Song et al. 2021)."""
    flow = ProbabilityFlow(process_from_config(values))

    def path(u: float) -> float:
        sin, cos = 1 / math.cosh(u), -math.tanh(u)
        return cos * MU + math.hypot(cos * S, sin) * 1.3

    for share in (0.02, 0.3, 0.6, 0.9):
        u = flow.start + share * (flow.end - flow.start)
        point, slope, y = flow.point(u), flow.slope(u), path(u)
        assert angle(point) == pytest.approx(u, abs=1e-9)
        x = y * math.hypot(point.alpha, point.sigma)
        spread = point.alpha**2 * S**2 + point.sigma**2
        clean = MU + point.alpha * S**2 * (x - point.alpha * MU) / spread
        p, q = point.x0
        assert slope.input * y == pytest.approx(point.input_scale * x, rel=1e-12)
        step = 1e-5
        wanted = (path(u + step) - path(u - step)) / (2 * step)
        # 1e-9: of the difference quotient, and of alpha = 1 - sigma in flow matching near the data
        assert slope.own * y + slope.output * (clean - p * x) / q == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("values", PROCESSES, ids=name)
def test_ends(values: dict[str, Any]) -> None:
    flow = ProbabilityFlow(process_from_config(values))
    assert flow.start < flow.end <= 0
    assert 0 < flow.noise < 0.02
    assert flow.shrinkage == pytest.approx(1 / math.hypot(1, flow.noise), rel=1e-12)
    last = flow.ends[1]
    assert 0.99 < flow.prior_scale * math.hypot(last.alpha, last.sigma) / last.sigma < 1.01


def test_a_consistency_model_has_none() -> None:
    with refused(ConfigError, "process"):
        ProbabilityFlow(process_from_config({"process": "consistency"}))
