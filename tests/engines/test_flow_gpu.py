"""The flow engine on a CUDA device: real capture, the fused coupling, against the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.engines import FlowEngine
from tests.engines.flows import CASES, Case, make
from tests.engines.test_flow_capture import calls

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on(device: str, case: Case, **options: Any) -> FlowEngine:
    case.x = case.x.to(device)
    case.condition = None if case.condition is None else case.condition.to(device)
    return FlowEngine.from_module(case.flow, device=device, **options)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("name", CASES)
def test_float32_equals_the_cpu(name: str) -> None:
    case, twin = make(name), make(name)
    got, want = calls(on("cuda", case), case, 4), calls(on("cpu", twin, graph=False), twin, 4)
    for verb, values in want.items():
        for a, b in zip(got[verb], values, strict=True):
            # Some ten layers of float32; log-densities are sums of up to 192 terms.
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4 if verb != "log_prob" else 1e-2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_captured_equals_uncaptured_bit_for_bit(name: str, dtype: str) -> None:
    case = make(name)
    captured, eager = on("cuda", case, dtype=dtype), on("cuda", case, dtype=dtype, graph=False)
    for count in (4, 2):
        first = calls(captured, case, count)
        for verb, values in calls(eager, case, count).items():
            assert all(torch.equal(a, b) for a, b in zip(first[verb], values, strict=True)), verb
    facts = captured.describe()
    assert facts["backend"] == "cuda"
    assert facts["affine_coupling"] == "triton"
    assert {c["batch"] for c in facts["captured"]} == {2, 4}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_verify(name: str, dtype: str) -> None:
    found = FlowEngine.from_module(make(name).flow, device="cuda", dtype=dtype).verify()
    assert found.passed, str(found)


def test_weights_that_change_are_captured_anew() -> None:
    case = make("glow")
    engine = on("cuda", case)
    before = engine.log_prob(case.x)
    with torch.no_grad():
        case.flow.scales[0][1].loc += 0.1  # type: ignore[index, union-attr]
    after = engine.log_prob(case.x)
    assert not torch.equal(before, after)
    assert torch.equal(after, on("cuda", case, graph=False).log_prob(case.x))


def test_a_call_never_waits_for_the_device() -> None:
    case = make("glow")
    engine = on("cuda", case, graph=False)
    x = (case.x * 2 - 1).clone()
    engine.log_prob(x)
    engine.decode(engine.encode(x))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            verbs = engine.verbs()
            got: Tensor = verbs["log_prob"].fast(x)[0]
            verbs["decode"].fast(*verbs["encode"].fast(x))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.isfinite().all()
