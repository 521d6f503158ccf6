"""use_lu_lambdas is even in log-SNR on every process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import EDM, VESDE, VPSDE, FlowMatching, NoiseSchedule, SubVPSDE, solver_table
from fastgen.diffusion.lambdas import LambdaOptions, lambda_points
from fastgen.diffusion.sigmas import SigmaOptions, sigma_points
from fastgen.errors import ConfigError
from tests.refusals import refused

PROCESSES = [
    NoiseSchedule(),
    EDM(),
    VESDE(),
    VPSDE(),
    SubVPSDE(),
    FlowMatching(),
    FlowMatching(shift=3.0),
    FlowMatching(lambda_levels="nearly_one"),
]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_even_in_log_snr(process: Any) -> None:
    for points in (
        sigma_points(process, 9, SigmaOptions(use_lu_lambdas=True)),
        lambda_points(process, 9, LambdaOptions(use_lu_lambdas=True)),
    ):
        steps = np.diff(points.log_snrs[:-1])
        # Levels near 1 of flow matching carry their rounding into log(1 - sigma), 1e-6 at the least.
        np.testing.assert_allclose(steps, steps.mean(), rtol=1e-9)
        assert 0.0 < steps.mean() < np.inf


def test_flow_matching_at_its_ends() -> None:
    process = FlowMatching()
    assert len(solver_table("euler", process, 1, use_lu_lambdas=True)) == 1
    assert solver_table("euler", process, 5, use_lu_lambdas=True).initial_scale == 0.999
    with refused(ConfigError, "sigma"):
        solver_table("euler", process, 5, use_lu_lambdas=True, sigma_max=2.0)
