"""``fastgen evaluate`` of a diffusion model: the engine's numbers, its kinds, and the plot of the bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastgen
from fastgen.checkpoint import save
from fastgen.cli import main, parser
from fastgen.errors import ArgumentError, ConfigError
from fastgen.training.data import load

from .small import network, spec, unet_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten classes of 8x8 grey images, random weights."""
    folder = tmp_path_factory.mktemp("likelihood") / "model"
    config = unet_config(num_class_embeds=11)
    save(folder, spec(config), nn.ModuleDict({"unet": network(config)}).state_dict())
    return str(folder)


def call(model: str, *more: str) -> list[str]:
    return ["evaluate", model, "--data", "digits", "--subset", "0-17", *more]


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        (
            ["--steps", "2", "--solver", "heun", "--trace", "hutchinson"],
            {"steps": 2, "solver": "heun", "trace": "hutchinson"},
        ),
        (
            ["--steps", "1", "--dequantisation", "uniform", "--trace", "hutchinson"],
            {"steps": 1, "dequantisation": "uniform", "trace": "hutchinson"},
        ),
        (["--method", "bound", "--timesteps", "5"], {"method": "bound", "timesteps": 5}),
    ],
)
def test_evaluate_is_the_engines_number(
    model: str, flags: list[str], given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call(model, *flags, "--json", "--samples", "2", "--seed", "3")) == 0
    found = json.loads(capsys.readouterr().out)
    x, labels, _ = load("digits", subset=(0, 17)).batch(range(18))
    expected = fastgen.load(model).bits_per_dim(x, 2, labels=labels, seed=3, **given)
    assert found["bits_per_dim"] == pytest.approx(expected.mean, rel=1e-5)  # float32 in other batches
    assert found["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)
    named = (found["kind"], found["dequantisation"], found["samples"], found["given"])
    assert named == (expected.kind, expected.dequantisation, 2, "labels")


def test_words_say_the_kind(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(call(model, "--steps", "1", "--solver", "heun", "--subset", "0-1")) == 0
    )  # whole: 64 gradients
    assert "bits/dim (bound by decoder dequantisation given the label)" in capsys.readouterr().out
    assert main(call(model, "--steps", "1", "--trace", "hutchinson")) == 0
    assert "bits/dim (Hutchinson bound by decoder dequantisation given the label)" in capsys.readouterr().out


def test_plot_of_the_bound(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    out = tmp_path / "bound.png"
    assert main(call(model, "--method", "bound", "--timesteps", "4", "--plot", str(out), "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plot"] == str(out)
    assert "terms" not in report
    with Image.open(out) as image:
        assert image.size == (800, 320)
        assert len(image.convert("L").getcolors()) > 20
    assert main(call(model, "--method", "bound", "--timesteps", "4", "--plot", str(out))) == 1  # it is there


@pytest.mark.parametrize(
    ("flags", "error", "argument"),
    [
        (["--steps", "0"], ConfigError, "steps"),
        (["--method", "bound", "--steps", "3"], ArgumentError, "steps"),
        (["--timesteps", "3"], ArgumentError, "timesteps"),
        (["--rtol", "0.1"], ConfigError, "rtol"),
        (["--method", "bound", "--plot", "d.png", "--count", "3"], ConfigError, "--count"),
        (["--plot", "d.png"], ConfigError, "--plot"),
        (["--label", "3"], ConfigError, "--label"),
        (["--seed", "-1"], ConfigError, "--seed"),
    ],
)
def test_what_is_refused(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    error: type[Exception],
    argument: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    args = parser().parse_args(call(model, *flags))
    with pytest.raises(error) as refusal:
        args.run(args)
    assert refusal.value.argument == argument  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_unlabelled_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = unet_config(num_class_embeds=None)
    save(tmp_path / "m", spec(config), nn.ModuleDict({"unet": network(config)}).state_dict())
    assert main(call(str(tmp_path / "m"), "--method", "bound", "--timesteps", "2", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["given"], report["kind"], report["count"]) == (None, "bound", 18)
    assert torch.isfinite(torch.tensor(report["bits_per_dim"]))


def test_without_labels_it_says_so(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    data = tmp_path / "plain.npz"
    np.savez(data, images=np.zeros((3, 8, 8), np.uint8))
    flags = ["--steps", "1", "--trace", "hutchinson"]
    assert main(["evaluate", model, "--data", str(data), *flags]) == 0
    assert "without a label" in capsys.readouterr().out
    assert main(["evaluate", model, "--data", str(data), "--label", "3", *flags]) == 0
    assert "given the label" in capsys.readouterr().out


def test_the_density_of_two_columns_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows, plot = str(tmp_path / "rows"), tmp_path / "heat.png"
    assert (
        main(["train", rows, "--model", "diffusion_mlp", "--data", "two-moons", "--steps", "2", "--quiet"])
        == 0
    )
    flags = ["--solver", "heun", "--steps", "1", "--count", "20"]
    assert main(["evaluate", rows, "--plot", str(plot), *flags]) == 0
    assert plot.stat().st_size > 1000
