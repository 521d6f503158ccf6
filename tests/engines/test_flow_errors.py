"""A flow engine refuses what it cannot do, in words, and goes on working."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastgen.engines import FlowEngine
from fastgen.errors import ArgumentError, ConfigError, FastgenError
from tests.engines.flows import make, own_flow

Wrong = tuple[str, Callable[[FlowEngine], Any], type[Exception], str]
LABELLED = "glow, everything else"


X = torch.zeros(1, 3, 8, 8)
LATENTS = [torch.zeros(1, 6, 4, 4), torch.zeros(1, 24, 2, 2)]
WRONG: dict[str, Wrong] = {
    "n": ("glow", lambda e: e.sample(0), ConfigError, "n: expected an int from 1"),
    "seed": ("glow", lambda e: e.sample(1, seed=-1), ConfigError, "seed: expected integers from 0"),
    "both": ("glow", lambda e: e.sample(1, seed=1, seeds=[1]), ArgumentError, "seed and seeds: give one"),
    "seeds": ("glow", lambda e: e.sample(2, seeds=[1]), ConfigError, "seeds: expected 2, got 1"),
    "cold": ("glow", lambda e: e.sample(1, temperature=-0.1), ConfigError, "temperature: expected a number from 0"),
    "nan": ("glow", lambda e: e.sample(1, temperature=math.nan), ConfigError, "temperature: expected a number"),
    "unknown": ("glow", lambda e: e.sample(1, steps=3), TypeError, "steps"),
    "labels": ("glow", lambda e: e.sample(1, labels=0), ConfigError, "labels: this model has no classes"),
    "no labels": (LABELLED, lambda e: e.sample(1), ConfigError, "labels: this model needs one a sample"),
    "label": (LABELLED, lambda e: e.sample(1, labels=3), ConfigError, "labels: expected numbers from 0 to 2"),
    "context": ("glow", lambda e: e.sample(1, context=torch.ones(2)), ConfigError, "context: this flow takes none"),
    "no context": ("vector_flow", lambda e: e.sample(1), ConfigError, r"context: expected a float tensor \[1, 2\]"),
    "size": ("vector_flow", lambda e: e.sample(2, context=torch.ones(3, 2)), ConfigError, r"expected shape \[2, 2\]"),
    "output": ("glow", lambda e: e.sample(1, output_type="jpg"), ConfigError, "output_type: expected one of"),
    "shape": ("glow", lambda e: e.log_prob(torch.zeros(2, 3, 8, 9)), ConfigError, r"x: expected shape \[n, 3, 8, 8\]"),
    "empty": ("glow", lambda e: e.log_prob(torch.zeros(0, 3, 8, 8)), ConfigError, "n at least 1"),
    "type": ("glow", lambda e: e.log_prob(X.int()), ConfigError, r"x: expected a float tensor .*int32"),
    "no tensor": ("glow", lambda e: e.encode([1.0]), ConfigError, "x: expected a float tensor"),
    "latents": ("glow", lambda e: e.decode(LATENTS[:1]), ConfigError, "latents: expected a list of 2 tensors"),
    "latent": (
        "glow",
        lambda e: e.decode([LATENTS[0]] * 2),
        ConfigError,
        r"latents\[1\]: expected shape \[n, 24, 2, 2\]",
    ),
    "counts": (
        "glow",
        lambda e: e.decode([LATENTS[0], torch.zeros(2, 24, 2, 2)]),
        ConfigError,
        r"latents\[1\]: expected 1 samples, got 2",
    ),
    "steps": ("glow", lambda e: e.interpolate(X, X, 1), ConfigError, "steps: expected an int from 2"),
    "pairs": ("glow", lambda e: e.interpolate(X, torch.cat([X, X])), ConfigError, "b: expected as many"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_in_words(name: str) -> None:
    case, call, kind, words = WRONG[name]
    engine = FlowEngine.from_module(make(case).flow, device="cpu")
    with pytest.raises(kind, match=words):
        call(engine)
    if engine.flow.classes is None and not engine.flow.context:  # it goes on working
        engine.sample(1)


def test_wrong_options_are_refused_in_words() -> None:
    flow = own_flow()
    with pytest.raises(ConfigError, match=r"dtype: expected auto, float32, .*float64, got 'int8'"):
        FlowEngine.from_module(flow, dtype="int8")
    with pytest.raises(ConfigError, match=r"flow: expected a fastgen.*Flow, got Linear"):
        FlowEngine.from_module(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="graph: expected True"):
        FlowEngine.from_module(flow, graph="maybe")
    with pytest.raises(ConfigError, match="max_batch: expected an int"):
        FlowEngine.from_module(flow, max_batch=0)
    with pytest.raises(ConfigError, match="temperature"):
        FlowEngine.from_module(flow, temperature=-1.0)


@pytest.mark.parametrize("packed", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_says_that_it_cannot_be_packed(packed: Callable[[Any], Any]) -> None:
    engine = FlowEngine.from_module(own_flow())
    with pytest.raises(ArgumentError, match="cannot be pickled or copied; load it where it is used"):
        packed(engine)


def test_on_a_gpu_a_forked_process_is_told() -> None:
    engine = FlowEngine.from_module(own_flow())
    engine.device = torch.device("cuda", 0)
    engine._forked()
    with pytest.raises(FastgenError, match=r"loaded on cuda:0 before this process was forked"):
        engine.sample(1)
