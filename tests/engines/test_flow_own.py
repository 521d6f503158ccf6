"""An engine on a flow of one's own: unknown layers, weights that change, weights that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastgen.engines import FlowEngine
from fastgen.errors import CheckpointError
from fastgen.models.flow.coupling import Coupling
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import ActNorm, Squeeze
from fastgen.models.flow.priors import StandardNormal
from tests.engines.flows import Shift, own_flow


def test_layers_of_ones_own_run_as_they_are() -> None:
    flow = own_flow().double()
    engine = FlowEngine.from_module(flow)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(engine.log_prob(x), flow.log_prob(x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(engine.decode(engine.encode(x)), x, rtol=1e-10, atol=1e-10)


def write(change: Callable[[Flow], None], engine: FlowEngine, flow: Flow) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    before = engine.log_prob(x)
    with torch.no_grad():
        change(flow)
    after = flow.log_prob(x).detach()
    assert not torch.allclose(before, after, rtol=1e-6)
    torch.testing.assert_close(engine.log_prob(x), after, rtol=1e-12, atol=1e-12)


def train(flow: Flow) -> None:
    flow.train()
    optimiser = torch.optim.SGD(flow.parameters(), 0.05)
    with torch.enable_grad():
        (-flow.log_prob(torch.randn(8, 4, dtype=torch.float64)).mean()).backward()
    optimiser.step()


def replace_parameter(flow: Flow) -> None:
    flow.scales[0][0].scale = nn.Parameter(flow.scales[0][0].scale.detach() * 2)  # type: ignore[index, union-attr]


CHANGES: dict[str, Callable[[Flow], Any]] = {
    "in place": lambda flow: flow.scales[0][0].loc.add_(0.5),  # type: ignore[index, union-attr]
    "an optimiser's step": train,
    "load_state_dict": lambda flow: flow.load_state_dict({k: v * 1.1 for k, v in flow.state_dict().items()}),
    "another tensor": replace_parameter,
    "another tensor's data": lambda flow: setattr(
        flow.scales[0][3].weight,
        "data",
        flow.scales[0][3].weight.data * 1.5,  # type: ignore[index, union-attr]
    ),
}


@pytest.mark.parametrize("graph", [False, "recorded"])
@pytest.mark.parametrize("change", CHANGES)
def test_folded_weights_never_go_stale(change: str, graph: bool | str) -> None:
    flow = own_flow().double()
    write(CHANGES[change], FlowEngine.from_module(flow, graph=graph), flow)
    assert not flow.training


def test_what_was_written_behind_pytorchs_back_shows_after_refresh() -> None:
    flow = own_flow().double()
    engine = FlowEngine.from_module(flow)
    x = torch.randn(5, 4, dtype=torch.float64)
    engine.log_prob(x)
    flow.scales[0][3].weight.data.mul_(1.5)  # type: ignore[index, union-attr]
    engine.refresh()
    torch.testing.assert_close(engine.log_prob(x), flow.log_prob(x).detach(), rtol=1e-12, atol=1e-12)


def test_a_singular_matrix_is_refused_at_load_and_when_it_becomes_so() -> None:
    flow = own_flow()
    engine = FlowEngine.from_module(flow)
    with torch.no_grad():
        flow.scales[0][3].weight.zero_()  # type: ignore[index, union-attr]
    for call in (lambda: engine.sample(1), lambda: FlowEngine.from_module(flow)):
        with pytest.raises(CheckpointError, match=r"scales\.0\.3.*singular"):
            call()


def test_a_scale_that_overflows_shows() -> None:
    coupling = Coupling(Shift(100.0, 0.0, 2), channels=4, split="half", scale="exp")
    flow = Flow((4,), [], [[coupling]], lambda i, latent, kept: StandardNormal(latent))
    engine = FlowEngine.from_module(flow)
    x = torch.ones(1, 4)
    assert not engine.log_prob(x).isfinite().any()
    assert not engine.encode(x)[0].isfinite().all()
    exact = FlowEngine.from_module(flow, dtype="float64")
    assert exact.log_prob(x).isfinite().all()


def test_odd_pictures_in_channels_last_memory() -> None:
    torch.manual_seed(0)
    flow = Flow(
        (3, 4, 6), [], [[Squeeze(), ActNorm(12)]], lambda i, latent, kept: StandardNormal(latent)
    ).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    engine = FlowEngine.from_module(flow)
    last = engine.encode(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(last[0], engine.encode(x)[0])
    assert torch.equal(last[0], flow(x)[0][0])
