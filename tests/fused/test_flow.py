"""The fused twin of a flow against the flow: values, cost, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.engines import FlowEngine
from fastgen.fused.chain import CouplingStep, FoldedStep
from fastgen.fused.flow import FusedFlow
from fastgen.models.flow.glow import Glow, GlowConfig
from tests.engines.flows import CASES, architectures, filled, make, noise

CPU = torch.device("cpu")


def test_every_architecture_of_flows_has_a_case() -> None:
    assert set(architectures()) == {architecture for architecture, _ in CASES.values()}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_float64_equals_the_reference(name: str) -> None:
    case = make(name, torch.float64)
    fused = FusedFlow(case.flow, CPU, torch.float64)
    latents, log_det = case.flow(case.x, case.condition)
    got, got_log_det = fused.encode(case.x, case.condition)
    scale = case.x[0].numel()  # log-densities are sums of so many terms
    for a, b in zip(got, latents, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(got_log_det, log_det, rtol=0, atol=1e-12 * scale)
    want = case.flow.log_prob(case.x, case.condition)
    torch.testing.assert_close(fused.log_prob(case.x, case.condition), want, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(fused.decode(got, case.condition), case.x, rtol=0, atol=1e-12)
    z = noise(case.flow)
    want = case.flow.sample(z, 0.7, case.condition)
    torch.testing.assert_close(fused.sample(z, 0.7, case.condition), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_arguments_are_left_alone_and_results_are_the_callers(name: str) -> None:
    case = make(name)
    fused = FusedFlow(case.flow, CPU)
    x, z = case.x.clone(), noise(case.flow)
    copies = [value.clone() for value in z]
    first, _ = fused.encode(x, case.condition)
    kept = [value.clone() for value in first]
    fused.log_prob(x, case.condition)
    fused.decode(z, case.condition)
    fused.sample(z, 0.7, case.condition)
    fused.encode(x + 0.1, case.condition)
    assert torch.equal(x, case.x)
    assert all(torch.equal(a, b) for a, b in zip(z, copies, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert all(value.is_contiguous() for value in first)


def glow(steps: int, scales: int = 3, hidden: int = 16, size: int = 16) -> Glow:
    config = GlowConfig(
        sample_size=(size, size), num_scales=scales, steps_per_scale=steps, hidden_channels=(hidden,)
    )
    torch.manual_seed(0)
    case = filled(Glow(config))
    assert isinstance(case.flow, Glow)
    return case.flow


def test_actnorm_and_convolution_are_one_step() -> None:
    fused = FusedFlow(glow(4), CPU)
    for chain in fused.chains:
        kinds = [
            type(step) for step in chain.steps if len(step.layers) != 1 or isinstance(step, CouplingStep)
        ]
        assert kinds == [FoldedStep, CouplingStep] * 4
        assert [len(step.layers) for step in chain.steps if isinstance(step, FoldedStep)][-4:] == [2] * 4


class Counting(TorchDispatchMode):
    """Operations that compute or write something: views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    with Counting() as counting:
        call()
    return counting.count


@torch.no_grad()
def test_cost_is_linear_in_depth() -> None:
    """Operations of a call are exactly a + b * steps, both ways, and b is less than half of the reference's."""
    counts: dict[str, list[int]] = {"log_prob": [], "sample": [], "reference": []}
    x = torch.rand(2, 3, 16, 16)
    for steps in (1, 2, 3, 5):
        flow = glow(steps)
        fused, z = FusedFlow(flow, CPU), noise(flow, 2)
        counts["log_prob"].append(operations(lambda fused=fused: fused.log_prob(x)))  # type: ignore[misc]
        counts["sample"].append(operations(lambda fused=fused, z=z: fused.sample(z)))  # type: ignore[misc]
        counts["reference"].append(operations(lambda flow=flow: flow.log_prob(x)))  # type: ignore[misc]
    for count in counts.values():
        one = count[1] - count[0]
        assert count == [count[0], count[0] + one, count[0] + 2 * one, count[0] + 4 * one]
    fast, slow = (counts[name][1] - counts[name][0] for name in ("log_prob", "reference"))
    assert fast < slow / 2, (fast, slow)


def call_peak(call: Callable[[], object]) -> int:
    """Bytes that a call allocates at most at a time, beside what is there already: PyTorch's allocator tells."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    held = peak = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak > 0
    return peak


def resident(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


# The folded matrices and their inverses, 2 C^2 a step, are small beside networks of at least some 64 channels.
@pytest.mark.parametrize(("hidden", "batch"), [(64, 1), (64, 16), (128, 4)])
@torch.no_grad()
def test_peak_memory_is_at_most_that_of_the_reference_and_a_tenth(hidden: int, batch: int) -> None:
    flow = glow(4, hidden=hidden, size=32)
    x, z = torch.rand(batch, 3, 32, 32), noise(flow, batch)
    weights = list(flow.parameters()) + list(flow.buffers())
    before = resident(weights)
    reference = {
        "log_prob": before + call_peak(lambda: flow.log_prob(x)),
        "sample": before + call_peak(lambda: flow.sample(z)),
    }
    engine = FlowEngine.from_module(flow, device="cpu")
    folded = [
        value
        for chain in engine.fused.chains
        for step in chain.steps
        if isinstance(step, FoldedStep)
        for side in (step._map, step._inverse_map)
        for value in (side.shift, side.scale, side.index, side.matrix)
        if value is not None
    ]
    networks = [
        value
        for chain in engine.fused.chains
        for step in chain.steps
        if isinstance(step, CouplingStep)
        for value in (*step.network.parameters(), *step.network.buffers())
    ]
    held = resident([*flow.parameters(), *flow.buffers(), *folded, *networks])
    got = {
        "log_prob": held + call_peak(lambda: engine.log_prob(x)),
        "sample": held + call_peak(lambda: engine.sample(batch, seed=0)),
    }
    for verb, bytes_ in got.items():
        assert bytes_ <= 1.1 * reference[verb], (verb, bytes_, reference[verb])
