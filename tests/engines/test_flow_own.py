"""An engine on a flow of one's own: unknown layers, weights that change, weights that cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fastgen.engines import FlowEngine
from fastgen.engines.weights import Weights
from fastgen.errors import CheckpointError
from fastgen.models.flow.coupling import Coupling
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import ActNorm, Affine, Layer, Scaling, Squeeze
from fastgen.models.flow.linear import LUConv, PlainConv
from fastgen.models.flow.priors import StandardNormal
from tests.engines.flows import Shift, own_flow
from tests.refusals import refused


def test_layers_of_ones_own_run_as_they_are() -> None:
    flow = own_flow().double()
    engine = FlowEngine.from_module(flow)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(engine.log_prob(x), flow.log_prob(x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(engine.decode(engine.encode(x)), x, rtol=1e-10, atol=1e-10)


class Scaled(ActNorm):
    """A map that its class's name does not tell: twice what an ActNorm of its weights would do."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = super().forward(x, condition)
        return 2 * y, log_det + x[0].numel() * math.log(2)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y / 2, condition)
        return x, log_det - y[0].numel() * math.log(2)


class Clamped(Coupling):
    def raw(self, kept: Tensor, condition: Tensor | None) -> Tensor:
        return super().raw(kept, condition).clamp(-0.1, 0.1)


def tripled(flow: Flow) -> Flow:
    def hook(layer: nn.Module, given: Any, result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return 3 * result[0], result[1] + 4 * math.log(3)

    flow.scales[0][0].register_forward_hook(hook)  # type: ignore[index]
    return flow


def flow_of(layer: Layer) -> Flow:
    return Flow((4,), [], [[layer, ActNorm(4)]], lambda i, latent, kept: StandardNormal(latent)).double()


@pytest.mark.parametrize(
    "flow",
    [
        flow_of(Scaled(4)),
        flow_of(Clamped(Shift(0.7, 0.5, 2), channels=4, scale="exp")),
        tripled(flow_of(ActNorm(4))),
    ],
    ids=["an ActNorm's subclass", "a Coupling's subclass", "hooks"],
)
def test_what_does_more_than_its_class_runs_as_it_is(flow: Flow) -> None:
    engine = FlowEngine.from_module(flow)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(engine.log_prob(x), flow.log_prob(x).detach(), rtol=1e-12, atol=1e-12)


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


def replace_twice(flow: Flow) -> None:
    replace_parameter(flow)
    replace_parameter(flow)


def replace_layer(flow: Flow) -> None:
    layer = ActNorm(4).double()
    layer.scale.data.fill_(1.7)
    flow.scales[0][0] = layer  # type: ignore[index]


CHANGES: dict[str, Callable[[Flow], Any]] = {
    "another tensor, twice": replace_twice,
    "another layer": replace_layer,
    "another layer at the end": lambda flow: flow.scales[0].append(Scaled(4).double()),  # type: ignore[operator]
    "another network": lambda flow: setattr(flow.scales[0][2], "network", Shift(0.7, 0.1, 2).double()),  # type: ignore[index]
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


def test_memory_that_the_engine_goes_by_is_not_used_again() -> None:
    """A new tensor must not lie where the one that was folded lay: they are told apart by their places."""
    layer = ActNorm(4)
    weights = Weights(layer, writes=True)
    memory = StorageWeakRef(layer.scale.untyped_storage())
    assert not weights.changed
    layer.scale.data = layer.scale.data * 1.1
    assert weights.changed
    assert not memory.expired()
    del weights
    assert memory.expired()


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
    calls: tuple[Callable[[], Any], ...] = (
        lambda: engine.sample(1),
        lambda: engine.sample(1),  # and never with the weights of before
        lambda: FlowEngine.from_module(flow),
        engine.refresh,
        lambda: engine.sample(1),
    )
    for call in calls:
        with refused(CheckpointError, "scales.0.3", "4x4"):
            call()
    with torch.no_grad():
        flow.scales[0][3].weight.copy_(torch.eye(4))  # type: ignore[index, union-attr]
    engine.sample(1)


@pytest.mark.parametrize("kind", [PlainConv, LUConv, ActNorm, Scaling])
def test_weights_that_are_not_finite_are_refused_by_name(kind: type[Layer]) -> None:
    flow = flow_of(kind(4))  # type: ignore[call-arg]
    engine = FlowEngine.from_module(flow)
    with torch.no_grad():
        next(flow.scales[0][0].parameters()).fill_(math.nan)  # type: ignore[index, union-attr]
    for call in (lambda: engine.sample(1), lambda: FlowEngine.from_module(flow)):
        with refused(CheckpointError, "scales.0.0"):
            call()


def test_a_map_whose_inverse_overflows_is_refused_by_name() -> None:
    flow = flow_of(ActNorm(4)).float()
    with torch.no_grad():
        flow.scales[0][0].scale.fill_(1e-42)  # type: ignore[index, union-attr]
    with pytest.raises(CheckpointError, match=r"scales\.0\.0: .*float32.*float64"):
        FlowEngine.from_module(flow)
    assert FlowEngine.from_module(flow, dtype="float64").sample(1).isfinite().all()  # type: ignore[union-attr]


def test_a_map_of_zero_is_refused_by_name() -> None:
    with refused(CheckpointError, "scales.0.0", 0.0, 1.0):
        FlowEngine.from_module(flow_of(Affine(0.0, 1.0)))


def test_weights_made_in_inference_mode_do_not_go_stale() -> None:
    with torch.inference_mode():
        flow = own_flow().double()
        engine = FlowEngine.from_module(flow)
        write(CHANGES["in place"], engine, flow)


def test_a_scale_that_overflows_shows() -> None:
    coupling = Coupling(Shift(100.0, 0.0, 2), channels=4, split="half", scale="exp")
    flow = Flow((4,), [], [[coupling]], lambda i, latent, kept: StandardNormal(latent))
    engine = FlowEngine.from_module(flow)
    x = torch.ones(1, 4)
    assert not engine.log_prob(x).isfinite().any()
    assert not engine.encode(x)[0].isfinite().all()
    exact = FlowEngine.from_module(flow, dtype="float64")
    assert exact.log_prob(x).isfinite().all()


def test_odd_images_in_channels_last_memory() -> None:
    torch.manual_seed(0)
    flow = Flow(
        (3, 4, 6), [], [[Squeeze(), ActNorm(12)]], lambda i, latent, kept: StandardNormal(latent)
    ).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    engine = FlowEngine.from_module(flow)
    last = engine.encode(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(last[0], engine.encode(x)[0])
    assert torch.equal(last[0], flow(x)[0][0])
