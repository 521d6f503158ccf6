"""`fastgen train` of denoisers on every process: resumed exactly, drawn by the model's own defaults."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastgen
from fastgen.checkpoint import WEIGHTS_FILE, Part, Spec, file_sha256, load_spec
from fastgen.cli import main
from fastgen.engines.diffusion import DiffusionEngine
from fastgen.engines.diffusion.settings import DiffusionSettings
from fastgen.errors import ConfigError
from fastgen.models.diffusion_mlp import DiffusionMLP, DiffusionMLPConfig
from fastgen.models.embeddings import FourierFeatures
from fastgen.training.loop import LOSS_FILE
from fastgen.training.run import STATE_FILE
from tests.refusals import names, refused

from .denoising_mixture import covered, distance, learned, truth
from .mixture import MODES
from .test_train import interrupt_in_step, sigint

__all__ = ["sigint"]

FAST = ["--steps", "4", "--batch-size", "8", "--warmup", "2", "--precision", "fp32", "--quiet"]
FAST += ["--preview-every", "0", "--device", "cpu"]
IMAGES = ["--data", "digits", "--widths", "8,8"]
ROWS = ["--model", "diffusion_mlp", "--data", "two-moons", "--option", "hidden=8"]
PROCESSES = {
    "ddpm": ["--prediction-type", "epsilon", "--learn-sigma"],
    "vp": ["--prediction-type", "score"],
    "subvp": [],
    "ve": [],
    "edm": [],
    "flow": ["--loss-weighting", "min-snr", "--min-snr-gamma", "3"],
}


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize(
    ("data", "process"),
    [(IMAGES, "ddpm"), (IMAGES, "ve"), (ROWS, "edm"), (ROWS, "ve")],
    ids=["images, ddpm", "images, ve", "rows, edm", "rows, ve"],
)
def test_interrupted_and_resumed_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: list[str], process: str
) -> None:
    flags = [*data, "--process", process, *PROCESSES[process], *FAST]
    assert main(["train", str(tmp_path / "whole"), *flags]) == 0
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 2)
        assert main(["train", str(tmp_path / "broken"), *flags]) == 130
    assert main(["train", str(tmp_path / "broken"), "--resume", "--quiet", "--device", "cpu"]) == 0
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


@pytest.mark.parametrize("process", PROCESSES)
def test_what_is_trained_is_drawn(tmp_path: Path, process: str) -> None:
    """Images by a sheet, rows by a table in the data's own units, with no word about how."""
    model = str(tmp_path / "images")
    assert main(["train", model, *IMAGES, "--process", process, *PROCESSES[process], *FAST]) == 0
    sheet = str(tmp_path / "sheet.png")
    assert main(["sample", model, "-n", "2", "--seed", "0", "--steps", "3", "-o", sheet]) == 0
    engine = fastgen.load(model, device="cpu")
    assert engine.settings.variance == ("learned_range" if process == "ddpm" else None)
    weighting = {"edm": "edm", "flow": "min-snr"}.get(process, "simple")
    assert load_spec(Path(model)).provenance["objective"]["weighting"] == weighting

    rows = str(tmp_path / "rows")
    assert main(["train", rows, *ROWS, "--process", process, *PROCESSES[process], *FAST]) == 0
    table = tmp_path / "rows.csv"
    assert main(["sample", rows, "-n", "5", "--seed", "0", "-o", str(table)]) == 0
    drawn = np.loadtxt(table, delimiter=",", skiprows=1)
    assert drawn.shape == (5, 2)
    engine = fastgen.load(rows, device="cpu")
    again = engine.sample(5, seed=0)
    np.testing.assert_allclose(drawn, again.numpy(), rtol=1e-5, atol=1e-6)


def test_frequencies_of_a_network_that_is_told_sigma_stay(tmp_path: Path) -> None:
    """They are random and fixed (Song et al. 2021, appendix C), weight decay or not."""
    flags = ["--process", "ve", "--weight-decay", "0.5", "--lr", "0.1", "--seed", "3", *FAST]
    for name, data in (("images", IMAGES), ("rows", ROWS)):
        kept = []
        for steps in ("1", "4"):
            folder = tmp_path / f"{name}-{steps}"
            assert main(["train", str(folder), *data, *flags, "--steps", steps]) == 0
            network = fastgen.load(folder, device="cpu").network
            kept += [m.weight for m in network.modules() if isinstance(m, FourierFeatures)]
        assert len(kept) == 2
        # The average of equal weights is rounded once a step.
        torch.testing.assert_close(kept[0], kept[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("flags", "argument"),
    [
        (["--process", "flow", "--prediction-type", "epsilon"], "--prediction-type"),
        (["--process", "vp", "--learn-sigma"], "--learn-sigma"),
        (["--min-snr-gamma", "5"], "--min-snr-gamma"),
    ],
)
def test_the_command_names_what_does_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], argument: str
) -> None:
    assert main(["train", str(tmp_path / "m"), *IMAGES, *flags, *FAST]) == 1
    assert names(capsys.readouterr().err, argument)
    assert not (tmp_path / "m").exists()


def test_each_model_takes_its_kind_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "m"), "--model", "diffusion_mlp", "--data", "digits", *FAST]) == 1
    assert names(capsys.readouterr().err, "--model unet")
    assert main(["train", str(tmp_path / "m"), "--data", "two-moons", *FAST]) == 1
    assert names(capsys.readouterr().err, "diffusion_mlp")
    assert main(["train", str(tmp_path / "m"), *ROWS, *FAST, "--preview-every", "2"]) == 1
    assert names(capsys.readouterr().err, "--preview-every")
    assert main(["train", str(tmp_path / "m"), *ROWS, *FAST, "--option", "features=3"]) == 1
    assert names(capsys.readouterr().err, "--option features")


def perceptron(**changes: Any) -> DiffusionMLP:
    torch.manual_seed(0)
    return DiffusionMLP(DiffusionMLPConfig(**{"features": 3, "hidden": 16, "blocks": 1, **changes}))


def engine_of(network: DiffusionMLP, **changes: Any) -> DiffusionEngine:
    settings = DiffusionSettings(**{"schedule": {}, "value_range": None, "steps": 4, **changes})
    settings.check_network(network.config)
    return DiffusionEngine(network, settings.checked(), (network.config.features,), device="cpu")


def test_rows_are_drawn_in_the_units_of_the_data() -> None:
    """The affine map of the network's samples, in every way of drawing."""
    network, shift, scale = perceptron(), (5.0, -2.0, 0.0), (2.0, 0.5, 3.0)
    plain, moved = engine_of(network), engine_of(network, shift=shift, scale=scale)
    x = plain.sample(3, seed=1)
    assert x.shape == (3, 3)
    want = x * torch.tensor(scale) + torch.tensor(shift)
    torch.testing.assert_close(moved.sample(3, seed=1), want, rtol=0, atol=0)
    torch.testing.assert_close(list(moved.stream(3, seed=1))[-1].images, want, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(list(moved.sample_batches(3, seed=1))), want, rtol=1e-5, atol=1e-5)
    with moved.session() as session:
        tickets = session.add(3, seed=1)
        done = dict(session)
    torch.testing.assert_close(torch.stack([done[t] for t in tickets]), want, rtol=0, atol=0)
    assert moved.describe()["shape"] == [3]


def test_engines_of_rows_are_verified() -> None:
    """Guided, with a learned variance: the fused step and the captured loop against plain PyTorch."""
    network = perceptron(num_class_embeds=3, learned_variance=True)
    engine = engine_of(network, num_classes=2, null_class=2, variance="learned_range")
    report = engine.verify()
    assert report.passed, str(report)
    assert engine.sample(labels=[0, 1], seed=0, guidance_scale=2.0).shape == (2, 3)


def test_the_density_of_rows_is_one_of_their_units() -> None:
    """It moves with the units as densities do, and so do the terms of a bound."""
    torch.manual_seed(0)
    network = perceptron(features=2)
    shift, scale = (5.0, -3.0), (2.0, 0.25)
    plain, moved = engine_of(network), engine_of(network, shift=shift, scale=scale)
    side = torch.linspace(-2, 2, 5)
    x = torch.cartesian_prod(side, side)
    how: Any = {"solver": "heun", "steps": 8, "trace": "exact"}
    found = plain.log_prob(x, **how)
    rows = x * torch.tensor(scale) + torch.tensor(shift)
    expected = found.values - math.log(math.prod(scale))
    torch.testing.assert_close(moved.log_prob(rows, **how).values, expected, rtol=1e-4, atol=1e-3)
    bound = moved.log_prob(rows[:3], method="bound")
    assert bound.terms is not None
    whole = bound.terms.prior + bound.terms.by_timestep.sum(1)
    torch.testing.assert_close(-whole, bound.values, rtol=1e-9, atol=1e-9)


def test_rows_take_noise_and_are_interpolated_but_are_no_images() -> None:
    torch.manual_seed(0)
    engine = engine_of(perceptron(features=2), shift=(1.0, 2.0), scale=(3.0, 0.5))
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    drawn = engine.sample(noise=noise, seed=0, solver="ddim", steps=3)
    assert drawn.shape == (4, 2)
    alone = engine.sample(noise=noise[2], seeds=[2], solver="ddim", steps=3)
    torch.testing.assert_close(drawn[2:3], alone, rtol=1e-4, atol=1e-4)
    ways = engine.interpolate([0, 1], 3, solver="ddim", steps=3)
    assert ways.shape == (4, 2)
    torch.testing.assert_close(
        ways[[0, 3]], engine.sample(seeds=[0, 1], solver="ddim", steps=3), rtol=1e-4, atol=1e-4
    )
    rows: Any = torch.zeros(1, 2)
    for verb, name in (
        ("edit", "images"),
        ("encode", "images"),
        ("round_trip", "images"),
        ("decode", "latents"),
    ):
        with refused(ConfigError, name):
            getattr(engine, verb)(rows)
    with refused(ConfigError, "images"):
        engine.inpaint(rows, torch.ones(1))
    with refused(ConfigError, "grey"):
        engine.colourise(rows)


def test_a_perceptron_takes_rows_and_states() -> None:
    """[B, D] and [B, D, 1, 1] alike; a network that is told sigma divides by it; without labels it says so."""
    x, t = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 2.0, 30.0])
    for kind in ("positional", "fourier"):
        network = perceptron(time_embedding_type=kind, learned_variance=True)
        found = network(x, t)
        assert found.shape == (4, 6)
        assert torch.equal(network(x[:, :, None, None], t)[:, :, 0, 0], found)
    network = perceptron(time_embedding_type="fourier")
    plain = perceptron(time_embedding_type="fourier")
    plain.linear_out.register_forward_hook(lambda module, inputs, output: output * t[:, None])
    torch.testing.assert_close(plain(x, t), network(x, t) * t[:, None], rtol=1e-6, atol=1e-7)
    with refused(ConfigError, "label"):
        perceptron(num_class_embeds=2)(x, t)
    # Times that differ by one in a thousand, or in 250 log(sigma) / 4, are told apart.
    told = perceptron(time_scale=250.0)
    assert not torch.allclose(told(x, t / 100), told(x, t / 100 + 0.004))


def test_settings_of_rows_fit_the_network() -> None:
    spec = Spec(
        "diffusion",
        {"network": Part("diffusion_mlp", {"features": 3})},
        {"schedule": {}, "shift": [0.0, 1.0], "value_range": None},
    )
    settings = DiffusionEngine.settings_of(spec)
    with refused(ConfigError, "settings: shift", 2, 3):
        settings.check_network(perceptron().config)
    from tests.small import unet_config

    with refused(ConfigError, "settings: scale"):
        DiffusionSettings({}, scale=(1.0,)).check_network(unet_config(num_class_embeds=None))


def test_the_distance_tells_samples_of_the_mixture_from_others() -> None:
    assert distance(truth(10_000)) < 0.09
    assert distance(truth(10_000) * 1.2) > 0.15
    assert (
        distance(truth(10_000) + 0.3 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))) > 0.2
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DDPM, epsilon, learned variance", "VE, score", "EDM", "flow, velocity"])
def test_what_an_objective_learns(name: str) -> None:
    """As in the figure: every mode, most samples near one. Of others' arithmetic another run, not another result."""
    x = learned(name)
    modes, near = covered(x)
    assert modes == MODES
    assert near > 0.8
    assert distance(x) < 0.13
