"""GANs of other projects: their layouts, written independently, give the same images and scores once converted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.converters import build, detect, from_module
from fastgen.errors import CheckpointError, ConfigError
from tests import real
from tests.refusals import refused

from .gan_layouts import (
    ajbrock,
    ajbrock_discriminator,
    pretrained,
    run_ajbrock,
    run_ajbrock_discriminator,
    run_pretrained,
)

# float64 throughout, some dozen layers; the code in between is linear maps and tanh of values of size 1.
EXACT = 1e-10


def written(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def network(path: Path, name: str, assume: dict[str, Any] | None = None) -> Any:
    """The generator that a file becomes, in float64."""
    converter = detect(path)
    assert converter is not None
    assert converter.name == name
    return build(converter.read(path, None, assume or {}), torch.float64)["generator"]


KINDS: dict[str, dict[str, Any]] = {
    "biggan": {"deep": False, "shared": True, "hierarchical": True},
    "not hierarchical": {"deep": False, "shared": True, "hierarchical": False},
    "sagan": {"deep": False, "shared": False, "hierarchical": False},
    "deep": {"deep": True, "shared": True, "hierarchical": True},
    "no spectral norm": {"deep": False, "shared": True, "hierarchical": True, "spectral": False},
    "mybn": {"deep": False, "shared": True, "hierarchical": True, "norms": "bn.stored"},
    "cross replica": {"deep": False, "shared": True, "hierarchical": True, "norms": "bn.running"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_biggan_pytorch(kind: str, tmp_path: Path) -> None:
    options = KINDS[kind]
    state = ajbrock(0, **options)
    made = network(written(state, tmp_path / "G_ema.pth"), "biggan-pytorch")
    z, labels = torch.randn(3, 12, dtype=torch.float64), torch.tensor([0, 4, 2])
    run = {name: options[name] for name in ("deep", "hierarchical")}
    expected = run_ajbrock(state, z, labels, **run)
    assert made.config.spectral_norm == options.get("spectral", True)
    assert float((made(z, labels) - expected).abs().max()) < EXACT
    assert float(expected.std()) > 0.1


def test_accumulated_statistics(tmp_path: Path) -> None:
    """--accumulate_stats leaves sums, and how many there are."""
    state = ajbrock(0, **KINDS["mybn"])
    z, labels = torch.randn(2, 12, dtype=torch.float64), torch.tensor([1, 3])
    expected = run_ajbrock(state, z, labels, deep=False, hierarchical=True)
    summed = {
        name: 4 * value if "stored_" in name else value + 4 if "counter" in name else value
        for name, value in state.items()
    }
    made = network(written(summed, tmp_path / "G.pth"), "biggan-pytorch")
    assert float((made(z, labels) - expected).abs().max()) < EXACT


DISCRIMINATORS: dict[str, tuple[dict[str, Any], int, int]] = {  # layout, pixels, stages that halve them
    "32 pixels": ({"deep": False, "small": True}, 32, 2),
    "64 pixels": ({"deep": False, "small": False}, 64, 4),
    "deep, 32 pixels": ({"deep": True, "small": True, "depth": 2}, 32, 2),
    "deep, 64 pixels": ({"deep": True, "small": False, "depth": 2}, 64, 4),
}


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_discriminator_of_biggan_pytorch(kind: str, tmp_path: Path) -> None:
    layout, size, halvings = DISCRIMINATORS[kind]
    state = ajbrock_discriminator(0, **layout)
    converter = detect(written(state, tmp_path / "D.pth"))
    assert converter is not None
    converted = converter.read(tmp_path / "D.pth", None, {})
    made: Any = build(converted, torch.float64)["discriminator"]
    assert (made.config.size, made.config.halvings, made.config.attention) == (size, halvings, (1,))
    x, labels = torch.randn(3, 3, size, size, dtype=torch.float64), torch.tensor([0, 4, 2])
    expected = run_ajbrock_discriminator(state, x, labels, deep=layout["deep"], halvings=halvings)
    assert float((made(x, labels) - expected).abs().max()) < EXACT * float(expected.abs().max())
    assert float(expected.std()) > 0.1


def folder_of(path: Path, names: dict[str, int], kind: str = "biggan") -> Path:
    """A folder of BigGAN-PyTorch's training: names of files, and the seed of their values."""
    for name, seed in names.items():
        made = ajbrock(seed, **KINDS[kind]) if name[0] == "G" else discriminator_of_16_pixels(seed)
        written(made, path / name)
    torch.save({"state": {}}, path / "G_optim.pth")
    return path


def discriminator_of_16_pixels(seed: int) -> dict[str, Tensor]:
    """The layout for 32 pixels; the generator beside it says that there are 16."""
    return ajbrock_discriminator(seed, deep=False, small=True)


@pytest.mark.parametrize("kind", ["biggan", "sagan"])
def test_a_folder_of_biggan_pytorch(kind: str, tmp_path: Path) -> None:
    """Averaged weights where there are, the discriminator beside them; what was not taken is reported."""
    path = folder_of(tmp_path, {"G.pth": 1, "G_ema.pth": 0, "D.pth": 2}, kind)
    converter = detect(path)
    assert converter is not None
    converted = converter.read(path, None, {})
    made: Any = build(converted, torch.float64)
    z, labels = torch.randn(3, 12, dtype=torch.float64), torch.tensor([0, 4, 2])
    hierarchical = KINDS[kind]["hierarchical"]
    drawn = run_ajbrock(ajbrock(0, **KINDS[kind]), z, labels, deep=False, hierarchical=hierarchical)
    assert float((made["generator"](z, labels) - drawn).abs().max()) < EXACT
    scores = run_ajbrock_discriminator(discriminator_of_16_pixels(2), drawn, labels, deep=False, halvings=2)
    found = made["discriminator"](drawn, labels)
    assert float((found - scores).abs().max()) < EXACT * float(scores.abs().max())
    assert made["discriminator"].config.size == 16
    assert "G.pth" in " ".join(converted.report.assumed)
    assert "G_optim.pth" in " ".join(converted.report.ignored)
    engine = fastgen.load(str(path), device="cpu", dtype="float32")
    judged = engine.score(drawn.float(), labels=labels.tolist())
    # Some twenty layers in float32.
    assert float((judged - scores).abs().max()) < 1e-5 * float(scores.abs().max())


def test_sets_of_weights_in_a_folder(tmp_path: Path) -> None:
    """The one without a suffix unless a variant is asked for; a generator alone will do, a discriminator will not."""
    path = folder_of(tmp_path, {"G.pth": 0, "G_best0.pth": 1, "G_best1.pth": 2, "D_best0.pth": 3})
    converter = detect(path)
    assert converter is not None
    usual = converter.read(path, None, {}).spec
    assert (list(usual.parts), usual.provenance["weights"]) == (["generator"], ["G.pth"])
    other = converter.read(path, "best0", {}).spec
    assert other.provenance["weights"] == ["G_best0.pth", "D_best0.pth"]
    assert set(other.parts) == {"generator", "discriminator"}
    with refused(ConfigError, "variant"):
        converter.read(path, "best2", {})
    (path / "G.pth").unlink()
    with refused(CheckpointError, path):
        converter.read(path, None, {})
    (path / "G_best0.pth").unlink()
    with refused(CheckpointError, path):
        converter.read(path, "best0", {})


def test_a_discriminator_that_does_not_fit(tmp_path: Path) -> None:
    path = folder_of(tmp_path, {"G.pth": 0, "D.pth": 1})
    converter = detect(path)
    assert converter is not None
    with refused(ConfigError, "assume"):
        converter.read(path, None, {"size": 32})  # the generator says 16
    state = discriminator_of_16_pixels(1)
    file = path / "D.pth"
    for name, value, error, shown in (
        ("blocks.1.0.conv1.weight", torch.ones(8, 32, 3, 3), ConfigError, file),
        ("linear.bias", torch.ones(2), ConfigError, file),
        ("blocks.2.0.conv2.bias", None, CheckpointError, file),
        ("extra.weight", torch.ones(2), CheckpointError, file),
    ):
        changed = {n: v for n, v in {**state, name: value}.items() if v is not None}
        written(changed, file)
        with refused(error, shown):
            converter.read(path, None, {})
    written({**state, "embed.weight": torch.ones(6, 32), "embed.u0": torch.ones(1, 6)}, file)
    with refused(CheckpointError, file):
        converter.read(path, None, {})


@pytest.mark.parametrize("truncation", [1.0, 0.4, 0.58, 0.7, 0.13])
def test_pytorch_pretrained_biggan(truncation: float, tmp_path: Path) -> None:
    """At truncations that have statistics and between them; eps is the configuration's."""
    state = pretrained(1)
    written(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"eps": 1e-3, "n_stats": 6, "z_dim": 6}))
    made = network(tmp_path, "pytorch-pretrained-biggan")
    z, labels = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 4, 2])
    expected = run_pretrained(state, z, labels, truncation, 1e-3)
    found = made(z, labels, torch.full((3,), truncation, dtype=torch.float64))
    assert float((found - expected).abs().max()) < EXACT


def test_a_converted_biggan_draws_as_its_project_does(tmp_path: Path) -> None:
    """Truncation 1 by the law t * truncnorm(-2, 2) unless the caller says otherwise; what is assumed is reported."""
    written(pretrained(1), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    engine = fastgen.load(str(tmp_path), device="cpu")
    request = engine.request(1, labels=0)
    assert (request.truncation, request.truncation_law, request.bound) == (1.0, "rescale", 2.0)
    assumed = " ".join(engine.describe()["converted"]["assumed"])
    assert "interpolation" in assumed
    assert "eps" in assumed


def example(width: int = 4) -> nn.Module:
    """PyTorch's example's generator for 16x16 pixels, in its layout."""
    layers: list[nn.Module] = []
    widths = [7, 2 * width, width, 3]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.ConvTranspose2d(before, after, 4, 2 if i else 1, 1 if i else 0, bias=False))
        layers += [nn.BatchNorm2d(after), nn.ReLU(True)] if i < 2 else [nn.Tanh()]
    made = nn.Module()
    made.main = nn.Sequential(*layers)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made.eval()


def test_the_example_of_pytorch(tmp_path: Path) -> None:
    """A file and a live module; strides that the layout's code has not are said by the user."""
    torch.manual_seed(0)
    theirs = example()
    z = torch.randn(3, 7, dtype=torch.float64)
    made = network(written(theirs.state_dict(), tmp_path / "netG.pth"), "dcgan")
    expected = theirs.double().main(z[:, :, None, None]).detach()
    assert float((made(z) - expected).abs().max()) < EXACT
    live = build(from_module(theirs), torch.float64)["generator"]
    assert torch.equal(live(z), made(z))
    other = network(tmp_path / "netG.pth", "dcgan", {"strides": [1, 1, 1], "paddings": [0, 0, 0]})
    assert other(z).shape[-1] == 10


@pytest.mark.real
def test_digits_of_ryhan9834() -> None:
    """The author's own outputs in float32: tanh of sums of up to 4,096 products."""
    engine = fastgen.load(str(real.folder() / "weights/dcgan/generator.pth"), device="cpu", dtype="float32")
    expected = torch.load(real.folder() / "expected/ryhan_dcgan.pt", weights_only=True)
    found = engine.generate(expected["z"].flatten(1))
    assert float((found - expected["out"]).abs().max()) < 1e-4


def test_what_is_not_there(tmp_path: Path) -> None:
    state = ajbrock(0, **KINDS["biggan"])
    cases: list[tuple[str, type[Exception], str]] = [
        ("blocks.1.0.conv2.weight", CheckpointError, "blocks.1.0.conv2.weight"),
        ("blocks.0.0.bn2.stored_var", CheckpointError, "blocks.0.0.bn2"),
        ("linear.bias", CheckpointError, "linear.bias"),
    ]
    for missing, error, shown in cases:
        path = written({n: v for n, v in state.items() if n != missing}, tmp_path / "G.pth")
        converter = detect(path)
        assert converter is not None
        with refused(error, path, shown):
            converter.read(path, None, {})
    path = written({**state, "extra.weight": torch.ones(2)}, tmp_path / "G.pth")
    converter = detect(path)
    assert converter is not None
    with pytest.raises((CheckpointError, ConfigError), match=r"extra\.weight"):
        converter.read(path, None, {})
    with refused(ConfigError, f"{path}: depth"):
        deep = written(ajbrock(0, **KINDS["deep"]), path)
        found = detect(deep)
        assert found is not None
        found.read(deep, None, {"depth": 3})


def test_a_configuration_with_other_layers(tmp_path: Path) -> None:
    written(pretrained(1), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"layers": [[True, 16, 16], [False, 16, 8]]}))
    converter = detect(tmp_path)
    assert converter is not None
    with refused(ConfigError, tmp_path / "config.json"):
        converter.read(tmp_path, None, {})
