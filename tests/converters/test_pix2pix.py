"""pytorch-CycleGAN-and-pix2pix, converted: random weights in its layout give the same images and logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import to_dict
from fastgen.converters import CONVERTERS, Converted, build, detect, from_module
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import refused

from . import pix2pix_layout as theirs

NORMS = list(theirs.NORMS)
CONVERTER = CONVERTERS["pix2pix"]


def read(path: Path, network: nn.Module, assume: Mapping[str, Any] | None = None) -> Converted:
    torch.save(network.state_dict(), path)
    assert detect(path) is CONVERTER
    return CONVERTER.read(path, None, assume)


def images(channels: int, size: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64) * 2 - 1


@torch.no_grad()
def same(converted: Converted, part: str, network: nn.Module, x: Tensor) -> None:
    """In float64, with the statistics of the batch, with those of training, and the same dropout in training mode."""
    ours, network = build(converted)[part].double(), copy.deepcopy(network).double()
    given = (x,) if part == "generator" else (x[:, : x.shape[1] - 2], x[:, x.shape[1] - 2 :])
    running = network.eval()(x)
    assert torch.allclose(ours(*given, norm_mode="running"), running, rtol=0, atol=1e-12)
    for (
        module
    ) in network.modules():  # what the project's test script does without --eval, without the dropout
        if not isinstance(module, nn.Dropout):
            module.training = True
    torch.testing.assert_close(ours(*given, norm_mode="batch"), network(x), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    want = network.train()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(ours.train()(*given), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("downs", "dropout"), [(5, False), (6, False), (7, True)])
def test_unet(tmp_path: Path, norm: str, downs: int, dropout: bool) -> None:
    network = theirs.filled(theirs.unet(3, 2, 4, downs, norm, dropout))
    converted = read(tmp_path / "latest_net_G.pth", network, {"dropout": dropout} if downs > 5 else {})
    config = {"in_channels": 3, "out_channels": 2, "channels": 4, "downs": downs, "norm": norm}
    assert converted.spec.parts["generator"].config == {**config, "dropout": dropout}
    same(converted, "generator", network, images(3, 2**downs))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("padding", list(theirs.PADS))
def test_resnet(tmp_path: Path, norm: str, dropout: bool, padding: str) -> None:
    network = theirs.filled(theirs.resnet(1, 3, 4, 2, norm, dropout, padding))
    asked = {"padding": padding} if padding != "zero" else {}
    converted = read(tmp_path / "latest_net_G.pth", network, asked)
    config = converted.spec.parts["generator"].config
    assert (config["norm"], config["dropout"], config["padding"]) == (norm, dropout, padding)
    assert (config["blocks"], config["downs"], config["upsampling"]) == (2, 2, "deconvolution")
    same(converted, "generator", network, images(1, 16))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resize_convolutions(tmp_path: Path, mode: str) -> None:
    network = theirs.filled(theirs.resnet(3, 3, 4, 1, "batch", False, upsampling=mode))
    converted = read(tmp_path / "a.pth", network, {"upsampling": mode})
    same(converted, "generator", network, images(3, 16))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layers", [1, 3, 5])
def test_patch_discriminator(tmp_path: Path, norm: str, layers: int) -> None:
    network = theirs.filled(theirs.patch(5, 4, layers, norm))
    converted = read(tmp_path / "latest_net_D.pth", network, {"condition_channels": 3})
    config = converted.spec.parts["discriminator"].config
    assert config == {"in_channels": 3, "out_channels": 2, "channels": 4, "layers": layers, "norm": norm}
    same(converted, "discriminator", network, images(5, 128))


@pytest.mark.parametrize("norm", NORMS)
def test_pixel_discriminator(tmp_path: Path, norm: str) -> None:
    network = theirs.filled(theirs.Pixel(5, 4, norm))
    converted = read(tmp_path / "latest_net_D.pth", network, {"condition_channels": 3})
    same(converted, "discriminator", network, images(5, 8))


def test_wrapped_and_old(tmp_path: Path) -> None:
    """Prefixes of DataParallel and torch.compile; files of PyTorch 0.3: instance norms with running statistics, no
    counts of batches."""
    network = theirs.filled(theirs.unet(3, 3, 4, 6, "instance", False))
    state = network.state_dict()
    old = {f"module._orig_mod.{name}": value for name, value in state.items()}
    for name, module in network.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            old[f"module._orig_mod.{name}.running_mean"] = torch.zeros(4)
            old[f"module._orig_mod.{name}.running_var"] = torch.ones(4)
    torch.save(old, tmp_path / "latest_net_G.pth")
    converted = CONVERTER.read(tmp_path / "latest_net_G.pth", None, {"dropout": False})
    assert any("running_mean" in line for line in converted.report.ignored)
    same(converted, "generator", network, images(3, 64))
    network = theirs.filled(theirs.resnet(3, 3, 4, 1, "batch", False))
    state = {n: v for n, v in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    converted = CONVERTER.read(tmp_path / "old.pth", None, {})
    same(converted, "generator", network, images(3, 16))


@pytest.mark.parametrize("lost", [("weight",), ("weight", "bias"), ("weight", "running_mean")])
@pytest.mark.parametrize("everywhere", [False, True])
def test_batch_norms_that_lost_their_scales(tmp_path: Path, lost: tuple[str, ...], everywhere: bool) -> None:
    """A file that is not whole, and norms with affine=False: never a network without norms."""
    networks = {
        "model.model.1.model.2": theirs.unet(3, 3, 4, 6, "batch", False),
        "model.2": theirs.resnet(3, 3, 4, 1, "batch", False),
        "model.3": theirs.patch(6, 4, 3, "batch"),
        "net.3": theirs.Pixel(6, 4, "batch"),
    }
    for first, network in networks.items():
        state = theirs.filled(network).state_dict()
        norms = [n.removesuffix(".running_var") for n in state if n.endswith(".running_var")]
        for norm in norms if everywhere else [first]:
            for name in lost:
                del state[f"{norm}.{name}"]
        torch.save(state, tmp_path / "latest_net_G.pth")
        with refused(CheckpointError, tmp_path / "latest_net_G.pth", f"{first}.weight"):
            CONVERTER.read(tmp_path / "latest_net_G.pth", None, {})


def test_scales_of_an_instance_norm_are_not_dropped(tmp_path: Path) -> None:
    """The first norm is an instance norm, a later one has scales, or a bias."""
    for name in ("weight", "bias"):
        state = theirs.filled(theirs.unet(3, 3, 4, 6, "instance", False)).state_dict()
        added = f"model.model.1.model.3.model.2.{name}"
        torch.save({**state, added: torch.ones(16)}, tmp_path / "latest_net_G.pth")
        with refused(CheckpointError, tmp_path / "latest_net_G.pth", added):
            CONVERTER.read(tmp_path / "latest_net_G.pth", None, {})


def put(folder: Path, name: str, network: nn.Module) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(theirs.filled(network).state_dict(), folder / name)


def test_folders(tmp_path: Path) -> None:
    """Generator and discriminator become one model; epochs and CycleGAN's directions are variants."""
    pair = tmp_path / "pair"
    put(pair, "latest_net_G.pth", theirs.unet(3, 3, 4, 5, "batch", False))
    put(pair, "latest_net_D.pth", theirs.patch(6, 4, 3, "batch"))
    put(pair, "5_net_G.pth", theirs.unet(3, 3, 8, 5, "batch", False))
    assert detect(pair) is CONVERTER
    parts = CONVERTER.read(pair, None, {}).spec.parts
    assert set(parts) == {"generator", "discriminator"}
    assert parts["discriminator"].config["in_channels"] == 3
    assert CONVERTER.read(pair, "5", {}).spec.parts["generator"].config["channels"] == 8
    with refused(ConfigError, "variant", "'7'", "5", "latest"):
        CONVERTER.read(pair, "7", {})
    cycle = tmp_path / "cycle"
    for direction, channels in (("A", 4), ("B", 8)):
        put(cycle, f"latest_net_G_{direction}.pth", theirs.resnet(3, 3, channels, 1, "instance", False))
        put(cycle, f"latest_net_D_{direction}.pth", theirs.patch(3, channels, 3, "instance"))
    with refused(CheckpointError, cycle, "latest_A", "latest_B"):
        CONVERTER.read(cycle, None, {})
    parts = CONVERTER.read(cycle, "B", {}).spec.parts
    assert {part.config["channels"] for part in parts.values()} == {8}
    assert parts["discriminator"].config["in_channels"] == 0
    other = tmp_path / "other"
    put(other, "latest_net_G.pth", theirs.unet(3, 3, 4, 5, "batch", False))
    put(other, "latest_net_D.pth", theirs.patch(5, 4, 3, "batch"))
    with refused(ConfigError, other, 5):
        CONVERTER.read(other, None, {})


def test_what_tensors_do_not_say_is_reported(tmp_path: Path) -> None:
    network = theirs.filled(theirs.unet(3, 3, 4, 6, "batch", True))
    assumed = read(tmp_path / "a.pth", network).report.assumed
    assert len(assumed) == 1
    assert assumed[0].startswith("dropout = True")
    told = read(tmp_path / "a.pth", network, {"dropout": False}).report
    assert not told.assumed
    assert told.mapped == ["dropout = False"]
    five = read(tmp_path / "b.pth", theirs.unet(3, 3, 4, 5, "batch", False), {"dropout": True}).report
    assert any(line.startswith("dropout = True") for line in five.ignored)
    with refused(ConfigError, "assume", "blocks"):
        read(tmp_path / "a.pth", network, {"blocks": 3})


@pytest.mark.parametrize("dropout", [False, True])
def test_live_modules_say_it(dropout: bool) -> None:
    network = theirs.filled(theirs.unet(3, 3, 4, 6, "batch", dropout))
    converted = from_module(network)
    assert converted.spec.parts["generator"].config["dropout"] is dropout
    assert not converted.report.assumed
    same(converted, "generator", network, images(3, 64))
    replicated = theirs.filled(theirs.resnet(3, 3, 4, 1, "none", dropout, "replicate", "nearest"))
    same(from_module(replicated), "generator", replicated, images(3, 16))
    with refused(ConfigError, "assume", "dropout"):
        from_module(network, {"dropout": not dropout})


def test_what_is_no_such_network_is_refused(tmp_path: Path) -> None:
    """Layers of its own, affine instance norms, missing tensors; a plain Sequential is not taken for one."""
    network = theirs.filled(theirs.unet(3, 3, 4, 5, "batch", False))
    path = tmp_path / "latest_net_G.pth"
    state = network.state_dict()
    torch.save({**state, "model.model.1.model.9.weight": torch.zeros(3)}, path)
    with refused(CheckpointError, path, "model.model.1.model.9.weight"):
        CONVERTER.read(path, None, {})
    torch.save({n: v for n, v in state.items() if n != "model.model.1.model.2.bias"}, path)
    with refused(CheckpointError, path, "model.model.1.model.2.bias"):
        CONVERTER.read(path, None, {})
    torch.save({n: v for n, v in state.items() if "running" not in n}, path)
    with refused(ConfigError, path, "model.model.1.model.2"):
        CONVERTER.read(path, None, {})
    plain = theirs.Wrapped(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    torch.save(plain.state_dict(), tmp_path / "mlp.pth")
    assert not CONVERTER.detect(tmp_path / "mlp.pth")


def test_options_are_of_these_defaults() -> None:
    from fastgen.converters.pix2pix.networks import ASSUMED, Pix2pixOptions

    defaults = to_dict(Pix2pixOptions())
    assert {name: one.value for name, one in ASSUMED.items()} == {n: defaults[n] for n in ASSUMED}
