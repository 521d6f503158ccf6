"""zoo:glow-mnist exported, on onnxruntime, beside the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastgen
from fastgen import onnx_runtime
from tests.refusals import refused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Any:
    return fastgen.load("zoo:glow-mnist", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(glow: Path) -> Any:
    return onnx_runtime.load(glow, "cpu", threads=1, max_batch=2)


def labels(model: Any, count: int) -> Any:
    return None if model.manifest["classes"] is None else list(range(count))


def test_verbs_are_the_engines(engine: Any, model: Any) -> None:
    given = labels(model, 3)
    found = model.sample(3, seed=4, labels=given)
    x = engine.sample(3, seed=4, labels=given)
    assert np.abs(found - x.numpy()).max() < 1e-4
    log_prob = engine.log_prob(x, labels=given).numpy()
    assert np.abs(model.log_prob(x.numpy(), labels=given) / log_prob - 1).max() < 1e-4
    wanted = engine.encode(x, labels=given)
    latents = model.encode(x.numpy(), labels=given)
    assert [value.shape for value in latents] == [tuple(value.shape) for value in wanted]
    for one, other in zip(latents, wanted, strict=True):
        assert np.abs(one - other.numpy()).max() < 1e-4 * float(other.abs().max())
    back = model.decode(latents, labels=given)
    assert np.abs(back - engine.decode(wanted, labels=given).numpy()).max() < 1e-3


def test_the_log_determinant_is_that_of_the_map(engine: Any, model: Any) -> None:
    """Of the reference flow, in the engine's units."""
    given = labels(model, 2)
    x = engine.sample(2, seed=8, labels=given)
    flow = engine.flow
    condition = () if given is None else (torch.tensor(given),)
    with torch.no_grad():
        _, log_det = flow((x + 1) / 2 if flow.levels is not None else x, *condition)
    halved = np.log(2) * x[0].numel() if flow.levels is not None else 0.0
    found = model.log_det(x.numpy(), labels=given)
    assert np.abs(found / (log_det.numpy() - halved) - 1).max() < 1e-4


def test_bits_per_dim_is_the_engines(engine: Any, model: Any) -> None:
    given = labels(model, 2)
    generator = torch.Generator().manual_seed(0)
    k = torch.randint(0, 256, (2, *engine.shape), generator=generator)
    wanted = engine.bits_per_dim(k, 2, labels=given, seed=3).values.numpy()
    assert np.abs(model.bits_per_dim(k.numpy(), 2, labels=given, seed=3) - wanted).max() < 1e-4


def test_wrong_arguments(model: Any) -> None:
    shape = (1, *model.shape)
    for argument, call in (
        ("x", lambda: model.log_prob(np.zeros((1, 2)), labels=labels(model, 1))),
        ("x", lambda: model.log_prob(np.array(["a"]), labels=labels(model, 1))),
        ("latents", lambda: model.decode([np.zeros(shape)] * 99)),
        ("temperature", lambda: model.sample(1, temperature=-1.0, labels=labels(model, 1))),
        ("context", lambda: model.sample(1, context=np.zeros(3), labels=labels(model, 1))),
        ("x", lambda: model.bits_per_dim(np.zeros(shape), labels=labels(model, 1))),
        ("samples", lambda: model.bits_per_dim(np.zeros(shape, np.int64), 0, labels=labels(model, 1))),
    ):
        with refused(fastgen.ConfigError, argument):
            call()
