"""Training pix2pix: the losses of a step, jitter and decay, and runs from the command line that are interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen.checkpoint import WEIGHTS_FILE, file_sha256, load_spec
from fastgen.cli import main
from fastgen.errors import ConfigError, DataError
from fastgen.models.translate.discriminators import PixelDiscriminator, PixelDiscriminatorConfig
from fastgen.models.translate.pool import ImagePool, ImagePoolConfig
from fastgen.training.loop import LOSS_FILE
from fastgen.training.objective import Step
from fastgen.training.optimizers import rate
from fastgen.training.run import STATE_FILE
from fastgen.training.settings import RunConfig
from fastgen.training.translation import Translation, TranslationConfig
from tests.refusals import refused

from .test_train import interrupt_in_step, sigint

__all__ = ["sigint"]

CONFIG = RunConfig(precision="fp32")
ARGUMENTS = [
    "--model",
    "resnet_generator",
    "--ngf",
    "2",
    "--blocks",
    "1",
    "--ndf",
    "2",
    "--patch-layers",
    "0",
]
ARGUMENTS += ["--steps", "4", "--batch-size", "2", "--precision", "fp32", "--device", "cpu", "--quiet"]
ARGUMENTS += ["--size", "8", "--preview-every", "0", "--save-every", "2"]


def networks(pool: int = 0) -> nn.ModuleDict:
    torch.manual_seed(0)
    judge = PixelDiscriminatorConfig(in_channels=1, out_channels=1, channels=2, norm="none")
    made = nn.ModuleDict({"generator": nn.Conv2d(1, 1, 1), "discriminator": PixelDiscriminator(judge)})
    if pool:
        made["pool"] = ImagePool(ImagePoolConfig(images=pool, channels=2, size=(4, 6)))
    return made


def step(batch: int = 3) -> Step:
    generator = torch.Generator().manual_seed(1)
    x, y = (2 * torch.rand(batch, 1, 4, 6, generator=generator) - 1 for _ in range(2))
    return Step(x, None, generator, CONFIG, y)


@pytest.mark.parametrize("loss", ["non-saturating", "minimax", "lsgan", "hinge"])
def test_the_losses_of_a_step(loss: str) -> None:
    """By the paper's equations on sigmoids and means, the discriminator's halved."""
    nets, given = networks(), step()
    with torch.no_grad():  # logits of some size
        for parameter in nets.parameters():
            parameter.mul_(20)
    objective = Translation(TranslationConfig(gan_loss=loss, l1_weight=7.0))
    losses = dict(objective.losses(nets, given))
    assert list(losses) == ["discriminator", "generator"]
    assert given.target is not None
    fake = nets["generator"](given.x)
    real, wrong = nets["discriminator"](given.x, given.target), nets["discriminator"](given.x, fake)
    if loss == "lsgan":
        judged = F.mse_loss(real, torch.ones_like(real)) + F.mse_loss(wrong, torch.zeros_like(wrong))
        adversarial = F.mse_loss(wrong, torch.ones_like(wrong))
    elif loss == "hinge":
        judged, adversarial = (1 - real).clamp(min=0).mean() + (1 + wrong).clamp(min=0).mean(), -wrong.mean()
    else:
        bce = F.binary_cross_entropy_with_logits
        judged = bce(real, torch.ones_like(real)) + bce(wrong, torch.zeros_like(wrong))
        adversarial = (
            bce(wrong, torch.ones_like(wrong))
            if loss == "non-saturating"
            else -bce(wrong, torch.zeros_like(wrong))
        )
    # Means of 72 values of size 10 at most, in float32.
    assert torch.allclose(losses["discriminator"], judged / 2, rtol=1e-5)
    assert torch.allclose(losses["generator"], adversarial + 7 * F.l1_loss(fake, given.target), rtol=1e-5)


def test_whose_parameters_each_loss_reaches() -> None:
    """The discriminator's stops at the generator's images; the generator's runs through the discriminator."""
    nets = networks()
    for name, loss in Translation(TranslationConfig()).losses(nets, step()):
        nets.zero_grad(set_to_none=True)
        loss.backward()
        reached = {n.partition(".")[0] for n, p in nets.named_parameters() if p.grad is not None}
        assert reached == ({"discriminator"} if name == "discriminator" else {"generator", "discriminator"})


def test_the_discriminator_sees_pairs_of_the_pool() -> None:
    nets, objective = networks(pool=3), Translation(TranslationConfig())
    for _ in objective.losses(nets, step()):
        pass
    assert int(nets["pool"].count) == 3
    kept = nets["pool"].kept
    assert torch.equal(kept[:, :1], step().x)  # x with what was made of it
    assert torch.equal(kept[:, 1:], nets["generator"](step().x))


def test_jitter_moves_both_images_of_a_pair_alike() -> None:
    objective = Translation(TranslationConfig(jitter=4))
    x = torch.linspace(-1, 1, 16 * 16).view(1, 1, 16, 16).expand(8, 1, 16, 16).contiguous()
    drawn = Step(x, None, torch.Generator().manual_seed(0), RunConfig(precision="fp32"))
    one, two = objective._jittered(x, x, drawn)
    assert one.shape == x.shape
    assert torch.equal(one, two)
    assert len({float(image.mean()) for image in one}) > 4  # each at a place of its own


def test_linear_decay() -> None:
    config = RunConfig(steps=100, warmup=0, decay="linear")
    factors = [rate(i, config) for i in range(100)]
    assert factors[:51] == [1.0] * 51
    assert factors[51:] == pytest.approx([2 * (1 - i / 100) for i in range(51, 100)])
    assert rate(0, RunConfig(steps=100, warmup=10, decay="linear")) == 0.1


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    for folder, ending in (("A", "_A"), ("B", "_B")):
        (tmp_path / folder).mkdir()
        for i in range(5):
            values = np.random.default_rng(len(folder) * i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"{i}{ending}.png")
    return ["--data", str(tmp_path / "B"), "--target", str(tmp_path / "A")]


@pytest.mark.usefixtures("sigint")
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(
    pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pool, dropout and jitter, all of which have a state or are random."""
    arguments = [*pairs, *ARGUMENTS, "--pool", "3", "--jitter", "2", "--flip", "--gan-loss", "lsgan"]
    assert main(["train", str(tmp_path / "whole"), *arguments]) == 0
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 3)
        assert main(["train", str(tmp_path / "broken"), *arguments]) == 130
    assert main(["train", str(tmp_path / "broken"), "--resume", "--quiet"]) == 0
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name
    state = load_file(tmp_path / "whole" / STATE_FILE)
    assert int(state["model.pool.count"]) == 3
    assert state["model.pool.kept"].any()
    spec = load_spec(tmp_path / "whole")
    assert set(spec.parts) == {"generator", "discriminator"}
    assert spec.provenance["objective"] == {"gan_loss": "lsgan", "l1_weight": 100.0, "jitter": 2}


def test_a_unet_is_as_deep_as_its_images_allow(pairs: list[str], tmp_path: Path) -> None:
    model = ["--model", "unet_generator", "--ngf", "2", "--ndf", "2", "--steps", "1", "--size", "64"]
    common = ["--preview-every", "0", "--quiet", "--device", "cpu"]
    assert main(["train", str(tmp_path / "m"), *pairs, *model, *common]) == 0
    spec = load_spec(tmp_path / "m")
    assert spec.parts["generator"].config["downs"] == 6
    assert spec.parts["generator"].config["dropout"] is True
    assert spec.parts["discriminator"].architecture == "patch_discriminator"
    assert spec.parts["discriminator"].config["layers"] == 3


def test_what_cannot_be_trained(pairs: list[str], tmp_path: Path) -> None:
    from fastgen.commands.train import recipes
    from fastgen.training import data

    single = data.load(pairs[1], size=(8, 8))
    recipe = recipes()["unet_generator"][1]
    args = type("Args", (), {})()
    with refused(DataError, "B", "--target", "--side-by-side"):
        recipe.new_spec(args, single, RunConfig(data="B"), {})
    both = data.load(pairs[1], target=pairs[3], size=(48, 64))
    with refused(ConfigError, "--size", "48x64", "resnet_generator"):
        recipe.new_spec(args, both, RunConfig(), {})


def test_names_that_only_endings_tell_apart(pairs: list[str]) -> None:
    from fastgen.training import data

    both = data.load(pairs[1], target=pairs[3], size=(8, 8))
    assert len(both) == 5
    target = both.batch([2]).target
    assert target is not None
    shown: Tensor = target[0]
    assert torch.equal(shown, torch.from_numpy(np.array(Image.open(f"{pairs[3]}/2_A.png"))).permute(2, 0, 1))
