"""What a flow engine's verify finds, and that it finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.engines import FlowEngine
from fastgen.errors import ConfigError
from fastgen.fused.chain import CouplingStep, FoldedStep, _OnDevice
from tests.engines.flows import CASES, make
from tests.refusals import refused


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bfloat16", "float64"))]
)
def test_every_architecture_is_right(name: str, dtype: str) -> None:
    found = FlowEngine.from_module(make(name).flow, device="cpu", dtype=dtype).verify()
    assert found.passed, str(found)
    names = {check.name for check in found.checks if check.kind == "verb"}
    assert {"log_prob", "decode", "sample", "round trip"} <= names
    assert {"latents 0", "encode"} & names


def test_captured_calls_are_compared() -> None:
    found = FlowEngine.from_module(make("glow").flow, device="cpu", graph="recorded").verify(batch=3)
    assert found.passed, str(found)
    graphs = [check.name for check in found.checks if check.kind == "graph"]
    assert graphs == [
        f"captured {name}" for name in ("log_prob", "encode", "decode", "sample", "bits_per_dim")
    ]


def test_drift_is_held_against_full_precision() -> None:
    engine = FlowEngine.from_module(make("glow").flow, device="cpu", dtype="bfloat16")
    found = engine.verify(reference=make("glow").flow)
    drift = {check.name: check.drift for check in found.checks}
    assert found.passed, str(found)
    assert 1e-5 < (drift["latents 1"] or 0) < 0.1


def steps(engine: FlowEngine, kind: type) -> list:
    return [step for chain in engine.fused.chains for step in chain.steps if isinstance(step, kind)]


def spoil_matrix(engine: FlowEngine) -> None:
    steps(engine, FoldedStep)[1]._map.matrix[0, 1] += 1e-3


def spoil_inverse(engine: FlowEngine) -> None:
    step = steps(engine, FoldedStep)[1]
    side = step._inverse_map
    step._inverse_map = _OnDevice(side.shift * 1.001, side.scale, side.index, side.matrix)


def spoil_log_det(engine: FlowEngine) -> None:
    engine.fused.log_det += 0.1


def spoil_network(engine: FlowEngine) -> None:
    network = steps(engine, CouplingStep)[0].network
    network.last.factor = network.last.factor * 1.001


def spoil_options(engine: FlowEngine) -> None:
    steps(engine, CouplingStep)[0].options["scale"] = "exp"


def spoil_halves(engine: FlowEngine) -> None:
    step = steps(engine, CouplingStep)[0]
    whole = step.parts
    step.parts = lambda x: whole(x)[::-1]


def spoil_couplings_log_det(engine: FlowEngine) -> None:
    step = steps(engine, CouplingStep)[0]
    whole = step.couple

    def couple(changed: Tensor, raw: Tensor, log_det: Tensor | None, inverse: bool) -> None:
        whole(changed, raw, log_det, inverse)
        if log_det is not None:
            log_det += 1e-3

    step.couple = couple


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (spoil_couplings_log_det, {"scales.0.3"}),
        (spoil_matrix, {"scales.0.1 to 2"}),
        (spoil_inverse, {"scales.0.1 to 2"}),
        (spoil_log_det, {"log_prob"}),
        (spoil_network, {"scales.0.3"}),
        (spoil_options, {"scales.0.3"}),
        (spoil_halves, {"scales.0.3"}),
    ],
)
def test_what_is_wrong_is_found_where_it_is(spoil: Callable[[FlowEngine], None], names: set[str]) -> None:
    engine = FlowEngine.from_module(make("glow").flow, device="cpu")
    spoil(engine)
    found = engine.verify()
    assert not found.passed
    assert names <= {check.name for check in found.checks if not check.passed}, str(found)


def test_a_captured_call_that_is_wrong_is_found() -> None:
    engine = FlowEngine.from_module(make("glow").flow, device="cpu", graph="recorded")
    engine.verify()
    replay = engine.batches.graphs.replay

    def spoiled(key: tuple) -> None:
        replay(key)
        if key[0] == "encode":
            engine.batches._buffers[key][1][1][0, 0, 0, 0] += 1e-6  # its second result

    engine.batches.graphs.replay = spoiled  # type: ignore[method-assign]
    found = engine.verify()
    assert [check.name for check in found.checks if not check.passed] == ["captured encode"], str(found)


def test_arguments() -> None:
    engine = FlowEngine.from_module(make("nice").flow, device="cpu")
    with refused(ConfigError, "batch", 64, 0):
        engine.verify(batch=0)
    with refused(ConfigError, "seed", -1):
        engine.verify(seed=-1)
    with refused(ConfigError, "reference", "str"):
        engine.verify(reference="x")  # type: ignore[arg-type]
    with refused(ConfigError, "reference", "[1, 4, 4]", "[3, 8, 8]"):
        engine.verify(reference=make("glow").flow)
    with torch.autocast("cpu", torch.bfloat16):  # the caller's mode does not matter
        assert engine.verify(batch=np.int64(2), seed=(1 << 63) - 1).passed  # type: ignore[arg-type]


def test_one_element_of_a_coupling_that_is_off() -> None:
    """Among 192 numbers, by some tens of roundings."""
    engine = FlowEngine.from_module(make("glow").flow, device="cpu")
    step = steps(engine, CouplingStep)[0]
    whole = step.couple

    def couple(changed: Tensor, raw: Tensor, log_det: Tensor | None, inverse: bool) -> None:
        whole(changed, raw, log_det, inverse)
        changed[0, 0, 0, 0] += 1e-5

    step.couple = couple
    found = engine.verify()
    assert "scales.0.3" in {check.name for check in found.checks if not check.passed}, str(found)


def test_what_a_coupling_leaves_alone_keeps_its_bits() -> None:
    engine = FlowEngine.from_module(make("glow").flow, device="cpu")
    step = steps(engine, CouplingStep)[0]
    forward = step.forward

    def touched(x: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        y = forward(x, condition, log_det)
        step.layer.parts(y)[0].mul_(1 + 2**-23)
        return y

    step.forward = touched
    wrong = [(check.name, check.bound) for check in engine.verify().checks if not check.passed]
    assert ("scales.0.3", float("inf")) in wrong
