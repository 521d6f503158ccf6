"""``fastgen train --model adain``: a decoder learns to draw styles, its encoder stays as it was given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import fastgen
from fastgen.checkpoint import Part, Spec, save
from fastgen.cli import main
from fastgen.errors import CheckpointError
from fastgen.training.objective import Step
from fastgen.training.settings import RunConfig
from fastgen.training.style import StyleLossConfig, StyleTransfer
from tests.engines.styles import network
from tests.refusals import names


def pictures(folder: Path, seed: int, count: int = 4) -> Path:
    folder.mkdir()
    random = np.random.default_rng(seed)
    for i in range(count):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Contents, styles and an encoder."""
    net = network("adain")
    spec = Spec("style", {"network": Part("adain", {"channels": [8, 64, 64], "depths": [2, 2]})})
    save(tmp_path / "encoder", spec, {f"network.{k}": v for k, v in net.state_dict().items()})
    arguments = ["--data", pictures(tmp_path / "contents", 0), "--styles", pictures(tmp_path / "styles", 1)]
    return [str(a) for a in (*arguments, "--encoder", tmp_path / "encoder")]


SMALL = ["--size", "16", "--batch-size", "2", "--precision", "fp32", "--device", "cpu", "--quiet"]


class Few:
    """A data set of some pictures."""

    shape, num_classes, class_names, paired = (3, 16, 16), None, None, False

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: list[int]) -> tuple[Tensor, None, None]:
        from fastgen.training.batch import Batch

        return Batch(self.x[indices])  # type: ignore[return-value]


def test_the_loss_is_the_papers() -> None:
    """Beside equations 11 to 13 with means of squares, written out."""
    net = network("adain")
    generator = torch.Generator().manual_seed(0)
    x, styles = (torch.randint(256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8) for n in (2, 1))
    config = RunConfig(precision="fp32")
    objective = StyleTransfer(StyleLossConfig(style_weight=7.0), Few(styles), dict)  # type: ignore[arg-type]
    step = Step(objective.inputs(x), None, torch.Generator().manual_seed(1), config)
    ((group, loss),) = objective.losses(nn.ModuleDict({"network": net}), step)

    def mean_std(value: Tensor) -> Iterator[Tensor]:
        yield value.mean((2, 3), keepdim=True)
        yield (value.var((2, 3), keepdim=True) + 1e-5).sqrt()

    content, style = x / 255, (styles / 255).expand(2, -1, -1, -1)
    (mean, std), (style_mean, style_std) = (mean_std(net.encoder(v)) for v in (content, style))
    target = (net.encoder(content) - mean) / std * style_std + style_mean
    drawn = list(net.encoder.each(net.decoder(target)))
    wanted = list(net.encoder.each(style))
    of_style = sum(
        F.mse_loss(a, b)
        for one, other in zip(drawn, wanted, strict=True)
        for a, b in zip(mean_std(one), mean_std(other), strict=True)
    )
    assert group == "loss"
    torch.testing.assert_close(loss, F.mse_loss(drawn[-1], target) + 7.0 * of_style, rtol=1e-5, atol=0)


def test_trained_from_the_command_line(given: list[str], tmp_path: Path) -> None:
    arguments = ["--model", "adain", *given, *SMALL, "--steps", "30", "--lr", "0.003"]
    assert main(["train", str(tmp_path / "m"), *arguments]) == 0
    losses = np.loadtxt(tmp_path / "m/loss.csv", delimiter=",", skiprows=1)[:, 1]
    assert losses[-8:].mean() < 0.8 * losses[:8].mean()
    encoder, made = (fastgen.load(tmp_path / name, device="cpu").network for name in ("encoder", "m"))
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(made.encoder.state_dict()[name], value), name
    assert not torch.equal(made.decoder[0].weight, encoder.decoder[0].weight)
    again = [
        "train",
        str(tmp_path / "n"),
        "--model",
        "adain",
        *given,
        *SMALL,
        "--steps",
        "30",
        "--lr",
        "0.003",
    ]
    again[again.index("--encoder") + 1] = str(tmp_path / "m")
    assert main(again) == 0
    assert (tmp_path / "n/loss.csv").read_text() == (tmp_path / "m/loss.csv").read_text()


@pytest.mark.parametrize("left_out", ["--styles", "--encoder"])
def test_what_is_needed(
    left_out: str, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = given.index(left_out)
    arguments = [*given[:at], *given[at + 2 :]]
    assert main(["train", str(tmp_path / "m"), "--model", "adain", *arguments, *SMALL]) == 1
    assert names(capsys.readouterr().err, left_out)
    assert not (tmp_path / "m").exists()


def test_an_encoder_of_something_else(given: list[str], tmp_path: Path) -> None:
    from fastgen.converters.style.adain import open_encoder
    from fastgen.zoo import folder
    from tests.refusals import refused

    with refused(CheckpointError, folder("microast")):
        open_encoder(folder("microast"))


def test_an_encoder_that_is_not_there(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nope = tmp_path / "nope.pth"
    given[given.index("--encoder") + 1] = str(nope)
    assert main(["train", str(tmp_path / "m"), "--model", "adain", *given, *SMALL]) == 1
    assert names(capsys.readouterr().err, "--encoder", nope)
