"""Captured calls of a flow engine: the recorded backend, turns, threads, forks."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.engines import FlowEngine
from fastgen.errors import CaptureError
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import Layer
from fastgen.models.flow.priors import StandardNormal
from tests.engines.flows import CASES, Case, make, own_flow
from tests.refusals import refused


def calls(engine: FlowEngine, case: Case, count: int) -> dict[str, list[Tensor]]:
    """Every verb's result for the first `count` samples."""
    given: dict[str, Any] = {key: value[:count] for key, value in case.given.items()}
    x = (case.x * 2 - 1 if engine.discrete else case.x)[:count]
    latents = engine.encode(x, **given)
    found = {
        "encode": latents,
        "decode": [engine.decode(latents, **given)],
        "log_prob": [engine.log_prob(x, **given)],
        "sample": [engine.sample(count, seed=3, temperature=0.7, **given)],
    }
    if engine.discrete:
        levels = engine.flow.levels or 0
        k = (case.x[:count] * (levels - 1)).round().int()
        found["bits_per_dim"] = [engine.bits_per_dim(k, 2, **given).values]
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("name", CASES)
def test_recorded_equals_eager_bit_for_bit(name: str) -> None:
    case = make(name)
    recorded = FlowEngine.from_module(case.flow, device="cpu", graph="recorded")
    eager = FlowEngine.from_module(case.flow, device="cpu", graph=False)
    first = calls(recorded, case, 4)
    for verb, values in calls(eager, case, 4).items():
        assert all(torch.equal(a, b) for a, b in zip(first[verb], values, strict=True)), verb
    captured = recorded.describe()["captured"]
    assert {c["name"] for c in captured} == set(first)
    assert {c["batch"] for c in captured} == {4}
    again = calls(recorded, case, 4)
    assert recorded.describe()["captured"] == captured  # nothing was captured anew
    for verb, values in first.items():  # and what was given away is not written to
        assert all(torch.equal(a, b) for a, b in zip(again[verb], values, strict=True)), verb


def test_a_batch_between_powers_of_two_is_padded() -> None:
    case = make("glow", torch.float64)
    recorded = FlowEngine.from_module(case.flow, device="cpu", graph="recorded")
    eager = FlowEngine.from_module(case.flow, device="cpu", graph=False)
    for count in (3, 1, 6):
        one, other = calls(recorded, case, count), calls(eager, case, count)
        for verb, values in other.items():
            for a, b in zip(one[verb], values, strict=True):
                assert a.shape == b.shape
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_temperature_and_conditions_are_data() -> None:
    case = make("glow, everything else")
    recorded = FlowEngine.from_module(case.flow, device="cpu", graph="recorded")
    eager = FlowEngine.from_module(case.flow, device="cpu", graph=False)
    for temperature in (0.3, 1.0):
        for labels in ([0, 1], [2, 2]):
            a, b = (e.sample(2, seed=1, temperature=temperature, labels=labels) for e in (recorded, eager))
            assert torch.equal(a, b)  # type: ignore[arg-type]
    assert len(recorded.describe()["captured"]) == 1


@pytest.mark.parametrize("graph", [False, "recorded"])
def test_a_contexts_type_does_not_matter_to_the_next_call(graph: bool | str) -> None:
    case = make("vector_flow")
    assert case.condition is not None
    want = FlowEngine.from_module(case.flow, graph=graph).log_prob(case.x, context=case.condition)
    engine = FlowEngine.from_module(case.flow, graph=graph)
    engine.log_prob(case.x, context=case.condition.half())
    assert torch.equal(engine.log_prob(case.x, context=case.condition), want)
    assert torch.equal(engine.log_prob(case.x, context=case.condition.double()), want)


class Peeking(Layer):
    """A layer that looks at a value."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x if float(x.sum()) > 0 else x + 0), x.new_zeros(len(x))

    inverse = forward


def test_a_layer_that_waits_for_the_device_cannot_be_captured() -> None:
    flow = Flow((4,), [], [[Peeking()]], lambda i, latent, kept: StandardNormal(latent))
    with refused(CaptureError, None, "_local_scalar_dense"):
        FlowEngine.from_module(flow, graph="recorded").sample(1)
    FlowEngine.from_module(flow, graph=False).sample(1)


@pytest.mark.parametrize("graph", [False, "recorded"])
def test_threads_get_what_one_gets(graph: bool | str) -> None:
    engine = FlowEngine.from_module(own_flow(), graph=graph)

    def draw(call: int) -> Tensor:
        x = engine.sample(1 + call % 3, seed=call)
        assert isinstance(x, Tensor)
        return torch.cat([x, engine.decode(engine.encode(x))])

    want = [draw(call) for call in range(24)]
    together = threading.Barrier(4)

    def every_call(first: int) -> list[bool]:
        together.wait()
        return [torch.equal(draw((first * 7 + k) % 24), want[(first * 7 + k) % 24]) for k in range(24)]

    with ThreadPoolExecutor(4) as pool:
        assert all(equal for results in pool.map(every_call, range(4)) for equal in results)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_the_callers_mode_does_not_matter(mode: Any) -> None:
    case = make("glow")
    engine = FlowEngine.from_module(case.flow, device="cpu", graph="recorded")
    x = case.x * 2 - 1
    want = engine.log_prob(x)
    with mode(), torch.autocast("cpu", torch.bfloat16):
        fresh = FlowEngine.from_module(case.flow, device="cpu", graph="recorded")
        assert torch.equal(engine.log_prob(x), want)
        assert torch.equal(fresh.log_prob(x), want)
    assert not want.requires_grad
    assert torch.equal(fresh.log_prob(x), want)


def test_a_process_forked_in_the_midst_of_a_call_can_draw() -> None:
    torch.set_num_threads(1)
    engine = FlowEngine.from_module(own_flow(), graph="recorded")
    want = engine.sample(2, seed=1)
    with engine._alone():
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if torch.equal(engine.sample(2, seed=1), want) else 2  # type: ignore[arg-type]
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
