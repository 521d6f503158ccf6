"""UniPC, DEIS, PNDM, SA-Solver, LCM, TCD and consistency sampling against the installed diffusers, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import NoiseSchedule, solver_table
from fastgen.diffusion.consistency_model import ConsistencyModel
from fastgen.diffusion.processes import AnyProcess
from fastgen.errors import ConfigError
from tests.refusals import refused

from .diffusers_oracle import deviation
from .golden import SCHEDULES, SPACINGS, TOLERANCE
from .golden_multistep import AS_DIFFUSERS, CLIPPED, OPTIONS, PATHS, processes, tolerance
from .multistep_oracle import matrices, matrix_deviation, trajectories

CASES = [(name, options) for name, many in OPTIONS.items() for options in many]


def label(options: dict[str, Any]) -> str:
    return "-".join(k if v is True and k.startswith("use_") else str(v) for k, v in options.items())


def check(name: str, process: AnyProcess, steps: int, options: dict[str, Any]) -> None:
    found = matrix_deviation(name, process, steps, **options)
    limit = tolerance(name, process, steps, options)
    assert found <= limit, f"{process.prediction_type} {steps} steps {options}: {found} > {limit}"


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{label(o)}" for n, o in CASES])
def test_a_tenth_of_all_runs(name: str, options: dict[str, Any]) -> None:
    """Which tenth changes from case to case, so that all values of all options occur."""
    for process, steps, chosen in list(processes(name, options))[CASES.index((name, options)) % 10 :: 10]:
        check(name, process, steps, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_all_runs(name: str) -> None:
    for options in OPTIONS[name]:
        for process, steps, chosen in processes(name, options):
            check(name, process, steps, chosen)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "consistency"])
def test_other_schedules(name: str) -> None:
    for kind, options in itertools.product(("cosine", "scaled"), OPTIONS[name][:2]):
        check(name, NoiseSchedule(**SCHEDULES[kind]), 20, options)
    if name not in ("lcm", "tcd"):
        check(
            name,
            NoiseSchedule(**SCHEDULES["scaled"]),
            20,
            {**options, "timestep_spacing": "leading", "steps_offset": 1},
        )


@pytest.mark.parametrize("spacing", SPACINGS)
def test_zero_terminal_snr(spacing: str) -> None:
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    for order_ in (1, 2, 3):
        check("unipc", schedule, 12, {"solver_order": order_, "timestep_spacing": spacing})
    check("lcm", schedule, 4, {})
    check("tcd", schedule, 4, {})


@pytest.mark.parametrize("name", ["unipc", "deis", "plms", "sa"])
def test_thousand_steps(name: str) -> None:
    check(name, NoiseSchedule(), 1000, {**OPTIONS[name][0], "timestep_spacing": "trailing"})


@pytest.mark.slow
def test_thousand_steps_of_others() -> None:
    check("pndm", NoiseSchedule(), 500, AS_DIFFUSERS)
    for options in ({"solver_order": 3}, {"predict_x0": False, "final_sigmas_type": "sigma_min"}):
        check("unipc", NoiseSchedule(), 1000, {**options, "timestep_spacing": "trailing"})
    check("lcm", NoiseSchedule(), 1000, {"original_inference_steps": 1000})
    check("tcd", NoiseSchedule(), 1000, {"original_inference_steps": 1000})


@pytest.mark.parametrize(
    ("name", "options", "clip"),
    [*((n, o, None) for n, o in PATHS if n != "consistency"), *((n, o, 0.7) for n, o in CLIPPED)],
)
def test_non_linear_trajectories(name: str, options: dict[str, Any], clip: float | None) -> None:
    for prediction, steps in itertools.product(("epsilon", "v_prediction"), (7, 12)):
        schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES["scaled"])
        ours, theirs = trajectories(name, schedule, steps, clip, **options)
        assert deviation(ours, theirs) <= tolerance(name, schedule, steps, options)
        if clip is not None:
            unclipped, _ = trajectories(name, schedule, steps, **options)
            assert deviation(ours, unclipped) > 1e-3  # the clipping was really on


def test_consistency_is_clipped_as_in_diffusers() -> None:
    ours, theirs = trajectories("consistency", ConsistencyModel(), 5)
    assert deviation(ours, theirs) <= TOLERANCE
    assert np.abs(ours).max() == 1.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unipc", {"solver_type": "bh1"}),
        ("unipc", {"predict_x0": False}),
        ("unipc", {"lower_order_final": False}),
    ],
)
def test_where_diffusers_is_not_a_number(name: str, options: dict[str, Any]) -> None:
    """At the clean end h is infinite: diffusers meets inf * 0 or inf / inf; the limit is the estimate of x_0."""
    schedule = NoiseSchedule()
    ours, theirs = matrices(name, schedule, 20, **options)
    assert np.isnan(theirs[-1]).any()
    assert np.isfinite(ours).all()
    # Up to there the two agree.
    assert deviation(ours[:-1], theirs[:-1]) <= tolerance(name, schedule, 20, options)


def test_epsilons_rather_than_outputs() -> None:
    """For an epsilon prediction it is the same whether outputs or noises are summed; for v it is not."""
    for name in ("plms", "pndm"):
        for prediction, same in (("epsilon", True), ("v_prediction", False)):
            schedule = NoiseSchedule(prediction_type=prediction)
            tables = [solver_table(name, schedule, 20, sum_outputs=flag) for flag in (False, True)]
            assert np.allclose(tables[0].a, tables[1].a, rtol=1e-12, atol=1e-13) == same
    with refused(ConfigError, "sum_outputs"):
        solver_table("plms", NoiseSchedule(), 20, sum_outputs=True, clip_sample=True)
