"""Super-resolution networks, converted: random weights against their layout in torch's own modules, and real SRGANs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.versus import upscale_networks as theirs
from fastgen.converters import build, detect, from_module
from fastgen.converters.base import Report
from fastgen.converters.flows.state import State
from fastgen.converters.upscale.basicsr import NoOptions
from fastgen.errors import CheckpointError, ConfigError
from fastgen.fused.upscale import fused_upscaler
from tests import real
from tests.refusals import refused

# Sums of up to 2,000 products of about 1 in other orders, a few tens of layers on.
CLOSE = 1e-5


def case(name: str) -> tuple[nn.Module, dict]:
    """A small network of theirs with random weights, and what its file does not say."""
    torch.manual_seed(0)
    made = {
        "srgan x2": lambda: (theirs.SRGANGenerator(2, blocks=2, channels=16), {}),
        "srgan x4 norm": lambda: (theirs.SRGANGenerator(4, blocks=1, channels=16, end="norm"), {}),
        "msrresnet x2": lambda: (theirs.MSRResNet(2, blocks=2, channels=16), {}),
        "msrresnet x3": lambda: (theirs.MSRResNet(3, blocks=1, channels=16), {}),
        "msrresnet x4": lambda: (theirs.MSRResNet(4, blocks=1, channels=16), {}),
        "rrdbnet x1": lambda: (theirs.RRDBNet(1, blocks=1, channels=16, growth=8), {}),
        "rrdbnet x2": lambda: (theirs.RRDBNet(2, blocks=1, channels=16, growth=8), {}),
        "rrdbnet x4": lambda: (theirs.RRDBNet(4, blocks=2, channels=16, growth=8), {}),
        "srvgg x2": lambda: (theirs.SRVGGNetCompact(2, convs=3, channels=16), {}),
        "srvgg x4 leaky": lambda: (
            theirs.SRVGGNetCompact(4, convs=1, channels=16, act="leakyrelu"),
            {"act_type": "leakyrelu"},
        ),
        "srvgg x3 relu": lambda: (
            theirs.SRVGGNetCompact(3, convs=0, channels=16, act="relu"),
            {"act_type": "relu"},
        ),
    }
    network, assume = made[name]()
    return theirs.with_statistics(network), assume


NAMES = (
    *("srgan x2", "srgan x4 norm", "msrresnet x2", "msrresnet x3", "msrresnet x4"),
    *("rrdbnet x1", "rrdbnet x2", "rrdbnet x4", "srvgg x2", "srvgg x4 leaky", "srvgg x3 relu"),
)


def image() -> Tensor:
    return torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_converted_networks_agree(name: str, tmp_path: Path) -> None:
    network, assume = case(name)
    path = tmp_path / "net.pth"
    torch.save({"params_ema": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    converter = detect(path)
    assert converter is not None
    assert converter.name == name.split()[0]
    converted = converter.read(path, None, assume)
    ours, x = build(converted)["upscaler"], image()
    want = network(x)
    torch.testing.assert_close(ours(x), want, rtol=0, atol=CLOSE)
    assert want.shape == (2, 3, 12 * ours.scale, 20 * ours.scale)  # type: ignore[operator]
    live = build(from_module(network, assume))["upscaler"]
    torch.testing.assert_close(live(x), ours(x), rtol=0, atol=0)
    # The fast form, on the memory format that engines have.
    fused = fused_upscaler(ours.to(memory_format=torch.channels_last))
    assert fused is not ours
    given = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused(given), want, rtol=0, atol=CLOSE)


@torch.no_grad()
def test_names_of_the_first_esrgan(tmp_path: Path) -> None:
    network, _ = case("rrdbnet x4")
    rest = {
        "conv_first": "model.0",
        "conv_body": "model.1.sub.2",
        "conv_up1": "model.3",
        "conv_up2": "model.6",
    }
    rest |= {"conv_hr": "model.8", "conv_last": "model.10"}
    old = {}
    for name, value in network.state_dict().items():
        place, part = name.rsplit(".", 1)
        if place in rest:
            old[f"{rest[place]}.{part}"] = value
        else:
            _, i, dense, conv = place.split(".")
            old[f"model.1.sub.{i}.{dense.upper()}.{conv}.0.{part}"] = value
    torch.save(old, tmp_path / "old.pth")
    converter = detect(tmp_path / "old.pth")
    assert converter is not None
    ours = build(converter.read(tmp_path / "old.pth", None, None))["upscaler"]
    torch.testing.assert_close(ours(image()), network(image()), rtol=0, atol=CLOSE)


def test_what_is_not_supported(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"

    def read(state: dict[str, Tensor], **assume: str) -> None:
        torch.save(state, path)
        converter = detect(path)
        assert converter is not None
        build(converter.read(path, None, assume))

    relu = case("srvgg x3 relu")[0].state_dict()
    with refused(ConfigError, "act_type", "leakyrelu"):
        read(relu)
    lost = case("srgan x2")[0].state_dict()
    del lost["block3.conv2.bias"]
    with refused(CheckpointError, path, "block3.conv2.bias"):
        read(lost)
    other = case("rrdbnet x4")[0].state_dict()
    other["conv_first.weight"] = torch.zeros(16, 7, 3, 3)
    with refused(ConfigError, path, 7):
        read(other)
    more = {**case("msrresnet x2")[0].state_dict(), "attention.weight": torch.zeros(3)}
    with refused(CheckpointError, path, "attention.weight"):
        read(more)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("srgan x2", "block1.1.weight"),
        ("srgan x2", "block2.prelu.weight"),
        ("srgan x4 norm", "block3.1.running_mean"),
        ("srgan x2", "block1.0.weight"),
        ("msrresnet x2", "upconv1.weight"),
        ("msrresnet x2", "conv_last.weight"),
        ("rrdbnet x4", "conv_last.weight"),
        ("rrdbnet x4", "body.0.rdb1.conv1.weight"),
        ("srvgg x2", "body.8.weight"),
        ("srvgg x2", "body.0.bias"),
        ("srvgg x2", "body.1.weight"),
    ],
)
def test_numbers_where_tensors_are_expected(name: str, tensor: str, tmp_path: Path) -> None:
    path, state = tmp_path / "net.pth", case(name)[0].state_dict()
    assert tensor in state
    torch.save({**state, tensor: torch.tensor(1.0)}, path)
    converter = detect(path)
    assert converter is not None
    with refused(CheckpointError, path, tensor):
        converter.read(path, None, None)


def test_an_activation_that_slopes_contradict(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(case("srvgg x2")[0].state_dict(), path)
    converter = detect(path)
    assert converter is not None
    with refused(ConfigError, "assume", "act_type", "relu", path):
        converter.read(path, None, {"act_type": "relu"})
    assert converter.read(path, None, {"act_type": "prelu"}).spec.parts["upscaler"].config["act"] == "prelu"


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, ZeroDivisionError, RuntimeError])
def test_tensors_that_do_not_go_together(error: type[Exception], tmp_path: Path) -> None:
    from fastgen.converters.flows import source

    path = tmp_path / "net.pth"
    torch.save({"w": torch.ones(3)}, path)

    def read(state: State, options: NoOptions, report: Report) -> source.Result:
        raise error("of tensors")

    made = source.Source("n", "a", "s", NoOptions, lambda names: "w" in set(names), read)
    with refused(CheckpointError, path, "of tensors"):
        source.converter(made).read(path)


@pytest.mark.real
@pytest.mark.parametrize("scale", [2, 4])
@torch.no_grad()
def test_leftthomas_srgan(scale: int) -> None:
    path = real.folder() / f"weights/srgan/netG_epoch_{scale}_100.pth"
    expected = torch.load(
        real.folder() / f"expected/sr_leftthomas_srgan_x{scale}.pt", map_location="cpu", weights_only=True
    )
    converter = detect(path)
    assert converter is not None
    network = build(converter.read(path, None, None))["upscaler"]
    torch.testing.assert_close(network(expected["x"]), expected["y"], rtol=0, atol=1e-4)
