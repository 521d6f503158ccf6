"""Networks that are changed, in part or whole, after an engine was made of them: it draws what they are now."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import fastgen
from fastgen import ConfigError, DiffusionEngine, FlowEngine
from fastgen.models.blocks import Attention, ResidualBlock
from fastgen.models.unet import UNet, UNetConfig
from tests.engines.flows import make
from tests.refusals import refused
from tests.small import checkpoint

CONFIG = UNetConfig(
    sample_size=(8, 8),
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=8,
)
# Of two float32 networks that add in other orders, over some thousand roundings of values around 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def network() -> UNet:
    torch.manual_seed(0)
    made = UNet(CONFIG).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return made


def engine(net: nn.Module) -> DiffusionEngine:
    return DiffusionEngine.from_module(net, {}, "epsilon", (1, 8, 8), device="cpu", dtype="float32")


def same_as_plain(model: DiffusionEngine, net: nn.Module) -> None:
    """The engine's own step is that of `net`, as it is now."""
    torch.manual_seed(1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    model.sample(2, seed=0, steps=2, solver="ddim")
    with torch.no_grad():
        torch.testing.assert_close(model.fused(x, t, None), net(x, t), **CLOSE)


class Lora(nn.Module):
    """A layer in place of another, as adapters put them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: Any) -> Any:
        return self.layer(*given) * 1.5


class Own(ResidualBlock):
    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        return super().forward(x, emb, skip) * 0.5


def subclassed(block: ResidualBlock) -> None:
    block.__class__ = Own


def put(name: str, made: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda block: setattr(block, name, made(getattr(block, name)))


def own_denoise(net: UNet) -> None:
    plain = net.denoise
    net.denoise = lambda x, emb, t: plain(x, emb, t) * 2  # type: ignore[method-assign]


def middle(change: Callable[[Any], object]) -> Callable[[UNet], object]:
    """A change of the middle's first residual block."""
    return lambda net: change(net.mid_block.resnets[0])  # type: ignore[union-attr, index]


def of_attention(change: Callable[[Any], object]) -> Callable[[UNet], object]:
    return lambda net: [change(module) for module in net.modules() if isinstance(module, Attention)]


CHANGES: dict[str, Callable[[UNet], object]] = {
    "a hook that does nothing": middle(lambda block: block.register_forward_hook(lambda m, i, o: None)),
    "a hook": middle(lambda block: block.register_forward_hook(lambda m, i, o: o * 2)),
    "hooks on all convolutions": lambda net: [
        module.register_forward_hook(lambda m, i, o: o * 1.1)
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ],
    "a subclass": middle(subclassed),
    "weight norm": middle(lambda block: nn.utils.parametrizations.weight_norm(block.conv1)),
    "pruned": middle(lambda block: prune.l1_unstructured(block.conv1, "weight", amount=0.3)),
    "a pruned projection": middle(
        lambda block: prune.l1_unstructured(block.time_emb_proj, "weight", amount=0.3)
    ),
    "another first convolution": middle(put("conv1", Lora)),
    "another projection": middle(put("time_emb_proj", Lora)),
    "another norm": middle(put("norm1", lambda norm: nn.Identity())),
    "no dropout": middle(put("dropout", lambda norm: Lora(nn.Identity()))),
    "another block": lambda net: net.mid_block.resnets.__setitem__(0, Lora(net.mid_block.resnets[0])),  # type: ignore[union-attr, operator]
    "another query": of_attention(put("to_q", Lora)),
    "another output": of_attention(put("to_out", Lora)),
    "a denoise of its own": own_denoise,
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_parts_of_other_kinds_stay_as_they_are(name: str, when: str) -> None:
    net = network()
    if when == "before":
        CHANGES[name](net)
        model = engine(net)
    else:
        model = engine(net)
        model.sample(1, seed=0, steps=1)
        CHANGES[name](net)
        model.refresh()  # hooks are not seen
    same_as_plain(model, net)


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.01, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.01, foreach=False),
    ],
)
def test_a_step_of_an_optimiser_shows(optimiser: Callable[[Any], torch.optim.Optimizer]) -> None:
    net = network().requires_grad_(True)
    model, other = engine(net), engine(network())
    before = model.sample(1, seed=0, steps=2)
    kept = other._weights
    steps = optimiser(net.parameters())
    net(torch.randn(1, 1, 8, 8), torch.tensor([3.0])).square().sum().backward()
    steps.step()
    assert not torch.equal(model.sample(1, seed=0, steps=2), before)
    same_as_plain(model, net)
    other.sample(1, seed=0, steps=2)
    assert other._weights is kept  # nothing of it has changed


def test_engines_are_made_in_inference_mode(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    want = fastgen.load(folder, device="cpu").sample(1, seed=0, steps=2, labels=0)
    with torch.inference_mode():
        model = fastgen.load(folder, device="cpu")
        assert torch.equal(model.sample(1, seed=0, steps=2, labels=0), want)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(model.sample(1, seed=0, steps=2, labels=0), want)


def test_another_network_in_its_place(tmp_path: Path) -> None:
    model = fastgen.load(checkpoint(tmp_path / "m"), device="cpu")
    assert isinstance(model, DiffusionEngine)
    arguments: dict[str, Any] = {"seed": 0, "steps": 2, "labels": 0}
    before = model.sample(1, **arguments)
    other = copy.deepcopy(model.network)
    for parameter in other.parameters():
        parameter.mul_(1.5)
    first = model.network
    (part,) = model.networks
    model.network = other
    changed = model.sample(1, **arguments)
    assert not torch.equal(changed, before)
    assert model.networks[part] is other
    assert model.verify().passed
    model.networks[part] = first
    assert model.network is first
    assert torch.equal(model.sample(1, **arguments), before)


def test_another_flow_in_its_place() -> None:
    flow = make("realnvp").flow
    other = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    model = FlowEngine.from_module(flow)
    model.sample(2, seed=0)
    (part,) = model.networks
    model.networks[part] = other
    want = FlowEngine.from_module(copy.deepcopy(other)).sample(2, seed=0)
    torch.testing.assert_close(model.sample(2, seed=0), want, **CLOSE)  # its filters lie in another layout


@pytest.mark.parametrize("change", ["half", "double", "meta"])
def test_another_type_or_device_is_refused(change: str) -> None:
    net = network()
    model = engine(net)
    before = model.sample(1, seed=0, steps=2)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    moved = net.to("meta") if change == "meta" else getattr(net, change)()
    for call in (lambda: model.sample(1, seed=0), model.verify):
        with refused(ConfigError, "networks"):
            call()
    if change == "meta":
        net = moved.to_empty(device="cpu")
    net.float().load_state_dict(kept)
    assert torch.equal(model.sample(1, seed=0, steps=2), before)
