"""A request as plain data: what ``to_dict`` says repeats it, and what is no request is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastgen
from fastgen.diffusion import NoiseSchedule, solver_table
from fastgen.diffusion.table_json import table_from_dict, table_to_dict
from fastgen.engines.diffusion.engine import DiffusionEngine
from fastgen.errors import ArgumentError
from tests.engines.test_session import make
from tests.refusals import refused
from tests.small import SCHEDULE

TABLE = solver_table("ddim", NoiseSchedule(**SCHEDULE), 4)


@pytest.mark.parametrize(
    "call",
    [
        {"solver": "unipc", "disable_corrector": [0]},
        {"solver": "unipc", "disable_corrector": (0, 1)},
        {"solver": "unipc", "disable_corrector": []},
        {"solver": "unipc", "disable_corrector": [[0], None]},
        {"solver": ["unipc", "ddim"], "disable_corrector": [[0, 2], None]},
        {"solver": "unipc", "disable_corrector": np.array([0, 1])},
        {"guidance_scale": [[1.0, 2.0, 3.0, 1.0, 1.0]] * 2},
        {"guidance_scale": 2.0, "guidance_sigmas": (0.3, math.inf)},
        {"guidance_scale": 2.0, "guidance_sigmas": (0.3, "inf")},
        {"guidance_scale": 2.0, "guidance_times": (-math.inf, 700)},
        {"guidance_scale": 2.0, "guidance_times": [(200, math.inf), None]},
    ],
)
def test_a_request_survives_json(call: dict[str, Any]) -> None:
    engine = make()
    request = engine.request(2, seed=3, labels=[1, 2], **call)
    text = json.dumps(request.to_dict(), allow_nan=False)
    again = engine.request(**json.loads(text))
    assert again.to_dict() == request.to_dict()
    assert torch.equal(engine.draw(again), engine.sample(2, seed=3, labels=[1, 2], **call))
    for k in range(2):
        assert torch.equal(engine.sample(**request.only(k).to_dict())[0], engine.draw(request)[k])


def test_a_default_that_is_a_list_is_one_value() -> None:
    engine = make(solver="unipc", solver_options={"disable_corrector": [0]})
    request = engine.request(2, seed=0)
    assert [plan.options["disable_corrector"] for plan in request.plans] == [(0,), (0,)]
    assert torch.equal(engine.sample(**request.to_dict()), engine.draw(request))
    assert not torch.equal(engine.draw(request), engine.sample(2, seed=0, disable_corrector=()))


@pytest.mark.parametrize("number", [np.float32(2.0), np.array(2.0), torch.tensor(2.0), np.float64(2.0)])
def test_numbers_of_other_libraries_are_numbers(number: Any) -> None:
    engine = make()
    want = engine.sample(2, seed=0, labels=1, guidance_scale=2.0, eta=[0.5, 1.0])
    got = engine.sample(2, seed=0, labels=1, guidance_scale=number, eta=[number / 4, number / 2])
    assert torch.equal(got, want)
    orders = engine.sample(1, seed=0, solver="unipc", solver_order=np.int64(2))
    assert torch.equal(orders, engine.sample(1, seed=0, solver="unipc", solver_order=2))


def test_the_classifier_s_classes_are_no_argument() -> None:
    with refused(ArgumentError, "classifier_classes"):
        make().sample(classifier_classes=3)


def test_an_interval_that_guides_nothing_is_said() -> None:
    with pytest.warns(UserWarning, match=" 5 "):
        make().request(labels=1, guidance_scale=2.0, guidance_interval=(0.85, 0.9))


@pytest.mark.parametrize(
    ("call", "without_effect"),
    [
        ({"solver": "ddim"}, "timestep_spacing=trailing"),
        ({"solver": "heun"}, "timestep_spacing=stable"),
        (
            {"solver": "ddim", "timestep_spacing": "leading", "timesteps": [[800, 400]], "steps": None},
            "timesteps",
        ),
        ({"solver": "ddim", "timestep_spacing": "leading"}, None),
        ({"solver": "ddim", "as_diffusers": True}, None),
    ],
)
def test_an_offset_without_effect_is_said(call: dict[str, Any], without_effect: str | None) -> None:
    engine = make(solver_options={"steps_offset": 1})
    offset = {"steps": 4, **call, "steps_offset": 7}
    plain = {name: value for name, value in offset.items() if name != "steps_offset"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.request(**plain)  # the model's own is diffusers'
        assert not caught
        tables = [engine.request(**asked).plans[0].table for asked in (offset, plain)]
    assert [f"steps_offset=7 has no effect with {without_effect}:" in str(w.message) for w in caught] == (
        [True] if without_effect else []
    )
    assert np.array_equal(tables[0].time, tables[1].time) == bool(without_effect)


def test_unlike_weights_of_long_runs_are_drawn_together() -> None:
    """More rows than a pool of 4096 has: as many steps as announced, which is one run's."""
    totals, weights = [], [1.0 + k / 8 for k in range(16)]
    engine = make(max_batch=16)
    engine.loop = engine.new_loop(pool_rows=64)
    engine.sample(
        labels=1,
        solver="ddim",
        steps=20,
        guidance_scale=weights,
        callback=lambda step, total, _: totals.append((step, total)),
    )
    assert totals == [(step, 20) for step in range(1, 21)]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("noise_step", [-1, 1, 2, 3], -1),
        ("noise_step", [0, 1, 2, 1 << 32], 1 << 32),
        ("noise_step", [0, 0.5, 2, 3], 0.5),
        ("slot", [0.5, 0, 0, 0], 0.5),
        ("p", [1e300, 1, 1, 1], "3.4e+38"),
        ("a", [[1e300] * 8] * 4, "3.4e+38"),
        ("initial_scale", 10**400, "1000000"),
        ("initial_scale", 1e300, "1e+300"),
        ("initial_scale", -1.0, -1.0),
    ],
)
def test_a_table_that_nobody_vouches_for_is_checked(name: str, value: Any, found: object) -> None:
    with refused(fastgen.ConfigError, "solver", name, found):
        table_from_dict({**table_to_dict(TABLE), name: value}, "solver")
    with refused(fastgen.ConfigError, "solver", name, found):
        make().request(solver={**table_to_dict(TABLE), name: value})
    with refused(
        fastgen.ConfigError, "ddim" if name in ("p", "a") else name, name, found
    ):  # an object of one's own
        make().request(solver=dataclasses.replace(TABLE, **{name: value}))


@pytest.mark.parametrize("name", ["a", "slot", "initial_scale"])
def test_objects_are_no_numbers(name: str) -> None:
    with refused(fastgen.ConfigError, name):
        dataclasses.replace(TABLE, **{name: object()})
    with refused(fastgen.ConfigError, "solver", "object"):
        make().request(solver={**table_to_dict(TABLE), name: object()})


class Score(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -x / (1.0 + t[:, None, None, None] ** 2)


def test_means_over_the_batch_couple_samples() -> None:
    process = {"process": "ve", "sigma_min": 0.01, "sigma_max": 1.0}
    engine = DiffusionEngine.from_module(Score(), process, "score", (1, 6, 6))
    call = {"seed": 0, "solver": "predictor_corrector", "steps": 4}
    assert engine.request(3, **call, step_size="batch").coupled
    assert not engine.request(3, **call).coupled
    whole = engine.request(3, **call, step_size="batch")
    assert torch.equal(engine.sample(**whole.to_dict()), engine.draw(whole))
    assert not torch.equal(engine.draw(whole.only(1))[0], engine.draw(whole)[1])
