"""Training super-resolution: the losses, how small images are made, and runs from the command line, interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import fastgen
from fastgen.checkpoint import WEIGHTS_FILE, Part, Spec, file_sha256, load_spec, save
from fastgen.cli import main
from fastgen.config import to_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.upscale.discriminator import SRDiscriminator, SRDiscriminatorConfig
from fastgen.training.loop import LOSS_FILE
from fastgen.training.objective import Step
from fastgen.training.run import STATE_FILE
from fastgen.training.settings import RunConfig
from fastgen.training.upscale import SuperResolution, SuperResolutionConfig, shrunk
from tests.models.test_upscale import small
from tests.refusals import refused
from tests.small import unet_config

from .test_train import interrupt_in_step, sigint

__all__ = ["sigint"]

OPTIONS = ["--option", "scale=2", "--option", "num_features=4", "--option", "num_blocks=1"]
COMMON = [
    "--steps",
    "4",
    "--batch-size",
    "2",
    "--precision",
    "fp32",
    "--device",
    "cpu",
    "--quiet",
    "--size",
    "16",
]
ARGUMENTS = ["--model", "srresnet", *OPTIONS, *COMMON, "--preview-every", "4", "--save-every", "2"]


def networks() -> nn.ModuleDict:
    torch.manual_seed(0)
    judge = SRDiscriminator(SRDiscriminatorConfig(channels=2, stages=2)).train()
    return nn.ModuleDict({"upscaler": small("srresnet x2").requires_grad_(True), "discriminator": judge})


def step() -> Step:
    generator = torch.Generator().manual_seed(1)
    return Step(
        2 * torch.rand(3, 3, 12, 8, generator=generator) - 1, None, generator, RunConfig(precision="fp32")
    )


def test_small_images_are_pillows_bicubic() -> None:
    values = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    images = torch.from_numpy(values).permute(2, 0, 1)[None].float() / 127.5 - 1
    for scale in (2, 3, 4):
        theirs = Image.fromarray(values).resize((36 // scale, 24 // scale), Image.Resampling.BICUBIC)
        ours = ((shrunk(images, scale)[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
        # Pillow works with weights of 22 bits, one axis after the other, rounded to levels in between.
        assert float(np.abs(ours - np.asarray(theirs, dtype=np.float32)).max()) <= 1


@pytest.mark.parametrize("kind", ["none", "non-saturating", "vanilla", "relativistic"])
def test_the_losses_of_a_step(kind: str) -> None:
    """By the papers' formulas with sigmoids."""
    nets, given = networks(), step()
    config = SuperResolutionConfig(
        adversarial=kind, adversarial_weight=0.5, pixel_loss="mse", pixel_weight=3.0
    )
    if kind == "none":
        del nets["discriminator"]
    losses = dict(SuperResolution(config).losses(nets, given))
    made = nets["upscaler"]((shrunk(given.x, 2) + 1) / 2) * 2 - 1
    pixels = 3 * F.mse_loss(made, given.x)
    if kind == "none":
        assert list(losses) == ["upscaler"]
        torch.testing.assert_close(losses["upscaler"], pixels)
        return
    assert list(losses) == ["discriminator", "upscaler"]
    judge = nets["discriminator"]
    # In training mode a batch norm's statistics are the batch's: it gives the same twice.
    real, fake = judge(given.x).double(), judge(made).double()

    def bce(logits: Tensor, target: float) -> Tensor:
        return -(target * logits.sigmoid().log() + (1 - target) * (1 - logits.sigmoid()).log()).mean()

    if kind in ("non-saturating", "vanilla"):
        wanted = bce(real, 1) + bce(fake, 0), bce(fake, 1)
    else:
        critic = (bce(real - fake.mean(), 1) + bce(fake - real.mean(), 0)) / 2
        wanted = critic, (bce(real - fake.mean(), 0) + bce(fake - real.mean(), 1)) / 2
    torch.testing.assert_close(losses["discriminator"].double(), wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["upscaler"].double(), pixels + 0.5 * wanted[1], rtol=1e-5, atol=1e-6)


def test_one_name_of_the_loss_is_kept() -> None:
    assert SuperResolutionConfig(adversarial="vanilla") == SuperResolutionConfig(adversarial="non-saturating")
    assert to_dict(SuperResolutionConfig(adversarial="vanilla"))["adversarial"] == "non-saturating"


def test_whose_parameters_each_loss_reaches() -> None:
    nets = networks()
    config = SuperResolutionConfig(adversarial="relativistic", perceptual_weight=1.0)
    for name, loss in SuperResolution(config).losses(nets, step()):
        nets.zero_grad(set_to_none=True)
        loss.backward()
        reached = {n.partition(".")[0] for n, p in nets.named_parameters() if p.grad is not None}
        assert reached == ({"discriminator"} if name == "discriminator" else {"upscaler", "discriminator"})


def test_features_of_the_users_own() -> None:
    nets, given = networks(), step()
    del nets["discriminator"]
    mean = nn.AvgPool2d(4)
    config = SuperResolutionConfig(pixel_weight=0.0, perceptual_weight=2.0)
    ((_, loss),) = SuperResolution(config, features=mean).losses(nets, given)
    made = nets["upscaler"]((shrunk(given.x, 2) + 1) / 2) * 2 - 1
    torch.testing.assert_close(loss, 2 * F.l1_loss(mean(made), mean(given.x)))


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    for i in range(5):
        values = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{i}.png")
    return ["--data", str(tmp_path / "images")]


@pytest.mark.slow
@pytest.mark.usefixtures("sigint")
def test_two_stages_one_of_them_interrupted(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels first; then against a discriminator from there on, where the interrupted run ends as the other one."""
    assert main(["train", str(tmp_path / "first"), *data, *ARGUMENTS, "--lr", "0.01"]) == 0
    first = fastgen.load(tmp_path / "first", device="cpu", dtype="float32")
    second = [
        *data,
        *ARGUMENTS,
        "--lr",
        "0",
        "--init",
        str(tmp_path / "first"),
        "--adversarial",
        "relativistic",
    ]
    second += ["--judge-channels", "2"]
    assert main(["train", str(tmp_path / "still"), *second]) == 0
    still = fastgen.load(tmp_path / "still", device="cpu", dtype="float32")
    for name, value in still.upscaler.named_parameters():  # learnt nothing: it is what it began with
        assert torch.equal(value, first.upscaler.get_parameter(name)), name
    second[second.index("--lr") + 1] = "0.001"
    assert main(["train", str(tmp_path / "whole"), *second]) == 0
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 3)
        assert main(["train", str(tmp_path / "broken"), *second]) == 130
    assert main(["train", str(tmp_path / "broken"), "--resume", "--quiet"]) == 0
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name
    spec = load_spec(tmp_path / "whole")
    assert set(spec.parts) == {"upscaler"}
    assert spec.provenance["objective"]["adversarial"] == "relativistic"
    assert str(tmp_path) not in json.dumps(spec.provenance)  # no path of this machine
    with Image.open(tmp_path / "whole" / "previews" / "step-0000004.png") as sheet:
        assert sheet.width > 6 * 16


def test_what_cannot_be_trained(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(tmp_path / "m")
    assert main(["train", where, *data, *ARGUMENTS, "--size", "15"]) == 1
    assert main(["train", where, *data, *ARGUMENTS, "--pixel-loss", "l3"]) == 1
    assert "pixel_loss" in capsys.readouterr().err
    from fastgen.training.upscale import begin_with

    with refused(CheckpointError, tmp_path / "none"):
        begin_with(small("srresnet x2"), tmp_path / "none")
    for i, (engine, part) in enumerate(
        [("upscale", Part("srresnet", {"scale": 4})), ("diffusion", Part("unet", to_dict(unet_config())))]
    ):
        save(tmp_path / str(i), Spec(engine, {"upscaler": part}), {})
        with refused(ConfigError, "--init", tmp_path / str(i)):
            begin_with(small("srresnet x2"), tmp_path / str(i))
    with refused(ConfigError, "train: pixel_weight"):
        from fastgen.config import from_dict

        from_dict(SuperResolutionConfig, {"pixel_weight": -1.0}, "train")
