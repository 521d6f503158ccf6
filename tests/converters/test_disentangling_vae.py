"""VAEs of disentangling-vae: the authors' own weights and results, and files that are not what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.errors import CheckpointError, ConfigError
from tests import real
from tests.refusals import refused

PARITY = 1e-4  # the expected outputs are float32 on another machine


def theirs(folder: Path, large: bool = False, **changes: Any) -> Path:
    """A folder as disentangling-vae writes it, of random weights."""
    generator = torch.Generator().manual_seed(0)
    size = 64 if large else 32

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 8

    layers: dict[str, tuple[int, ...]] = {
        f"encoder.conv{i}": (32, 1 if i == 1 else 32, 4, 4) for i in (1, 2, 3)
    }
    layers |= {"encoder.lin1": (256, 512), "encoder.lin2": (256, 256), "encoder.mu_logvar_gen": (20, 256)}
    layers |= {"decoder.lin1": (256, 10), "decoder.lin2": (256, 256), "decoder.lin3": (512, 256)}
    layers |= {f"decoder.convT{i}": (32, 1 if i == 3 else 32, 4, 4) for i in (1, 2, 3)}
    if large:
        layers |= {"encoder.conv_64": (32, 32, 4, 4), "decoder.convT_64": (32, 32, 4, 4)}
    state = {}
    for name, shape in layers.items():
        state[f"{name}.weight"] = drawn(*shape)
        state[f"{name}.bias"] = drawn(shape[1] if "convT" in name else shape[0])
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "model.pt")
    specs = {"img_size": [1, size, size], "latent_dim": 10, "model_type": "Burgess", "rec_dist": "bernoulli"}
    (folder / "specs.json").write_text(json.dumps({**specs, "seed": 1, **changes}))
    return folder


def written_out(state: dict[str, Tensor], x: Tensor, z: Tensor, large: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Means, log-variances and images as encoders.py and decoders.py say."""
    F = torch.nn.functional

    def layer(function: Any, name: str, value: Tensor, *how: Any) -> Tensor:
        return function(value, state[f"{name}.weight"], state[f"{name}.bias"], *how)

    for name in ("conv1", "conv2", "conv3", *(["conv_64"] if large else [])):
        x = layer(F.conv2d, f"encoder.{name}", x, 2, 1).relu()
    x = x.flatten(1)
    for name in ("lin1", "lin2"):
        x = layer(F.linear, f"encoder.{name}", x).relu()
    mean, log_var = layer(F.linear, "encoder.mu_logvar_gen", x).view(-1, 10, 2).unbind(-1)
    for name in ("lin1", "lin2", "lin3"):
        z = layer(F.linear, f"decoder.{name}", z).relu()
    z = z.view(-1, 32, 4, 4)
    for name in (*(["convT_64"] if large else []), "convT1", "convT2"):
        z = layer(F.conv_transpose2d, f"decoder.{name}", z, 2, 1).relu()
    return mean, log_var, layer(F.conv_transpose2d, "decoder.convT3", z, 2, 1).sigmoid()


@pytest.mark.parametrize("large", [False, True])
def test_layers_are_where_they_belong(tmp_path: Path, large: bool) -> None:
    """Random weights of both sizes, against the formulas of the project's modules."""
    folder = theirs(tmp_path / "model", large)
    engine: Any = fastgen.load(folder)
    state = torch.load(folder / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(1)
    x, z = torch.rand(3, *engine.shape, generator=generator), torch.randn(3, 10, generator=generator)
    mean, log_var, images = written_out(state, x, z, large)
    (found,) = engine.encode(2 * x - 1)
    torch.testing.assert_close(found.mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_var, log_var, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((engine.decode(z) + 1) / 2, images, rtol=0, atol=1e-5)


@pytest.mark.real
@pytest.mark.parametrize("name", ["mnist", "celeba"])
def test_the_authors_results(name: str) -> None:
    """The weights of the repository give what the authors' code gives."""
    engine: Any = fastgen.load(real.folder() / f"weights/vae/btcvae_{name}.pt")
    wanted = torch.load(real.folder() / f"expected/disvae_btcvae_{name}.pt", weights_only=True)
    drawn = (engine.decode(wanted["z"]) + 1) / 2
    torch.testing.assert_close(drawn, wanted["sample"], rtol=0, atol=PARITY)
    if "x" not in wanted:
        return
    x = 2 * wanted["x"] - 1
    (found,) = engine.encode(x)
    torch.testing.assert_close(found.mean, wanted["mu"], rtol=0, atol=PARITY)
    torch.testing.assert_close(found.log_var, wanted["logvar"], rtol=0, atol=PARITY)
    torch.testing.assert_close((engine.reconstruct(x) + 1) / 2, wanted["recon"], rtol=0, atol=PARITY)
    # Of its ten latents two tell nothing of digits.
    assert [latent.latent for latent in engine.report(x).collapsed] == [2, 7]


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    """Specs of another model, a loss that is no likelihood, tensors that are missing or too many."""
    for name, value in (("img_size", [1, 64, 64]), ("latent_dim", 12), ("rec_dist", "laplace")):
        folder = theirs(tmp_path / name, **{name: value})
        with refused(ConfigError, folder / "specs.json", name):
            fastgen.load(folder)
    with refused(ConfigError, "assume", "latents"):
        fastgen.load(theirs(tmp_path / "plain"), assume={"latents": 3})
    file = tmp_path / "plain/model.pt"
    state = torch.load(file, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "decoder.lin3.bias"}, file)
    with refused(CheckpointError, file, "decoder.lin3.bias"):
        fastgen.load(file.parent)
    torch.save({**state, "decoder.more.bias": torch.zeros(1)}, file)
    with refused(CheckpointError, file, "decoder.more.bias"):
        fastgen.load(file.parent)


def test_weights_alone(tmp_path: Path) -> None:
    """A file by itself is taken, and the report says what was assumed."""
    file = theirs(tmp_path / "model") / "model.pt"
    file.with_name("specs.json").unlink()
    engine: Any = fastgen.load(file)
    assert any("bernoulli" in line for line in engine.describe()["converted"]["assumed"])
    assert engine.describe()["decoder"] == "bernoulli"
