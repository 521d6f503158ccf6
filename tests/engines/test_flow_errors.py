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
from tests.refusals import refused

Wrong = tuple[str, Callable[[FlowEngine], Any], type[Exception], tuple]
LABELLED = "glow, everything else"


X = torch.zeros(1, 3, 8, 8)
LATENTS = [torch.zeros(1, 6, 4, 4), torch.zeros(1, 24, 2, 2)]
WRONG: dict[str, Wrong] = {
    "n": ("glow", lambda e: e.sample(0), ConfigError, ("n", 0)),
    "seed": ("glow", lambda e: e.sample(1, seed=-1), ConfigError, ("seed", -1)),
    "both": ("glow", lambda e: e.sample(1, seed=1, seeds=[1]), ArgumentError, ("seed, seeds",)),
    "seeds": ("glow", lambda e: e.sample(2, seeds=[1]), ConfigError, ("seeds", 2, 1)),
    "cold": ("glow", lambda e: e.sample(1, temperature=-0.1), ConfigError, ("temperature", -0.1)),
    "nan": ("glow", lambda e: e.sample(1, temperature=math.nan), ConfigError, ("temperature", "nan")),
    "unknown": ("glow", lambda e: e.sample(1, steps=3), TypeError, (None, "steps")),
    "labels": ("glow", lambda e: e.sample(1, labels=0), ConfigError, ("labels",)),
    "no labels": (LABELLED, lambda e: e.sample(1), ConfigError, ("labels", 2)),
    "label": (LABELLED, lambda e: e.sample(1, labels=3), ConfigError, ("labels", 2, 3)),
    "context": ("glow", lambda e: e.sample(1, context=torch.ones(2)), ConfigError, ("context",)),
    "no context": ("vector_flow", lambda e: e.sample(1), ConfigError, ("context", "[1, 2]")),
    "size": ("vector_flow", lambda e: e.sample(2, context=torch.ones(3, 2)), ConfigError, ("context", "[2, 2]")),
    "output": ("glow", lambda e: e.sample(1, output_type="jpg"), ConfigError, ("output_type", "jpg")),
    "shape": ("glow", lambda e: e.log_prob(torch.zeros(2, 3, 8, 9)), ConfigError, ("x", "[2, 3, 8, 9]")),
    "empty": ("glow", lambda e: e.log_prob(torch.zeros(0, 3, 8, 8)), ConfigError, ("x", "[0, 3, 8, 8]")),
    "type": ("glow", lambda e: e.log_prob(X.int()), ConfigError, ("x", "int32")),
    "no tensor": ("glow", lambda e: e.encode([1.0]), ConfigError, ("x",)),
    "latents": ("glow", lambda e: e.decode(LATENTS[:1]), ConfigError, ("latents", 2)),
    "latent": (
        "glow",
        lambda e: e.decode([LATENTS[0]] * 2),
        ConfigError,
        ("latents[1]", "[n, 24, 2, 2]"),
    ),
    "counts": (
        "glow",
        lambda e: e.decode([LATENTS[0], torch.zeros(2, 24, 2, 2)]),
        ConfigError,
        ("latents[1]", 1, 2),
    ),
    "steps": ("glow", lambda e: e.interpolate(X, X, 1), ConfigError, ("steps", 2, 1)),
    "pairs": ("glow", lambda e: e.interpolate(X, torch.cat([X, X])), ConfigError, ("b", 1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_in_words(name: str) -> None:
    case, call, kind, about = WRONG[name]
    engine = FlowEngine.from_module(make(case).flow, device="cpu")
    with refused(kind, *about):
        call(engine)
    if engine.flow.classes is None and not engine.flow.context:  # it goes on working
        engine.sample(1)


def test_wrong_options_are_refused_in_words() -> None:
    flow = own_flow()
    with refused(ConfigError, "dtype", "float32", "float64", "int8"):
        FlowEngine.from_module(flow, dtype="int8")
    with refused(ConfigError, "flow", "Linear"):
        FlowEngine.from_module(nn.Linear(2, 2))  # type: ignore[arg-type]
    with refused(ConfigError, "graph", "maybe"):
        FlowEngine.from_module(flow, graph="maybe")
    with refused(ConfigError, "max_batch", 0):
        FlowEngine.from_module(flow, max_batch=0)
    with refused(ConfigError, "from_module: temperature", -1.0):
        FlowEngine.from_module(flow, temperature=-1.0)
    with refused(ArgumentError, "bogus, steps", "temperature", "max_batch"):
        FlowEngine.from_module(flow, steps=3, bogus=1)
    with refused(ArgumentError, "steps", "temperature"):  # before what `flow` is
        FlowEngine.from_module(nn.Linear(2, 2), steps=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_says_that_it_cannot_be_packed(packed: Callable[[Any], Any]) -> None:
    engine = FlowEngine.from_module(own_flow())
    with refused(ArgumentError):
        packed(engine)


def test_on_a_gpu_a_forked_process_is_told() -> None:
    engine = FlowEngine.from_module(own_flow())
    engine.device = torch.device("cuda", 0)
    engine._forked()
    with refused(FastgenError, None, "cuda:0"):
        engine.sample(1)
