"""Weights of no model that is known: a U-Net's file points to from_module and to the folder form, not to flows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fastgen
from fastgen.cli import main
from fastgen.converters import CONVERTERS, detect
from fastgen.converters.unknown import like_denoiser
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import names, refused

from .folders import saved
from .test_wrapping import STEM, prefixed

FLOWS = ("normflows", "nflows", "zuko", "rosinality")
POINTS_TO = ("DiffusionEngine.from_module", "UNet2DModel", "config.json")
# The first names and sizes of tensors in well-known training code.
NETWORKS = {
    # lucidrains/denoising-diffusion-pytorch, denoising_diffusion_pytorch.py: Unet
    "lucidrains": ["init_conv.weight", "time_mlp.1.weight", "downs.0.0.block1.proj.weight", "ups.0.0.mlp.1.weight"],
    # openai/guided-diffusion, unet.py: UNetModel
    "guided-diffusion": ["time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.a", "output_blocks.0.0.b"],
    # w86763777/pytorch-ddpm, model.py: UNet
    "pytorch-ddpm": ["time_embedding.timembedding.0.weight", "head.weight", "downblocks.0.block1.0.weight"],
    # ermongroup/ddim, models/diffusion.py: Model
    "ddim": ["temb.dense.0.weight", "conv_in.weight", "down.0.block.0.conv1.weight", "up.0.block.0.conv1.weight"],
    # NVlabs/edm, training/networks.py: SongUNet within EDMPrecond
    "edm": ["model.map_noise.freqs", "model.enc.32x32_conv.weight", "model.dec.8x8_in0.conv0.weight"],
    # facebookresearch/DiT, models.py: DiT
    "DiT": ["x_embedder.proj.weight", "t_embedder.mlp.0.weight", "blocks.0.attn.qkv.weight"],
}  # fmt: skip


def network(which: str) -> dict[str, Tensor]:
    return {name: torch.ones(2, 2, 3, 3) for name in NETWORKS[which]}


@pytest.fixture
def unet(tmp_path: Path) -> dict[str, Tensor]:
    pytest.importorskip("diffusers")
    return load_file(saved(tmp_path / "unet") / "unet" / f"{STEM}.safetensors")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_unet_without_a_configuration(
    wrapped: bool, suffix: str, unet: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"model.{suffix}"
    torch.save({"ema": prefixed(unet, "module."), "epoch": 3} if wrapped else unet, path)
    for call in (fastgen.load, lambda source: fastgen.convert(source, tmp_path / "ours")):
        with refused(
            CheckpointError, path, *POINTS_TO, *(["'ema'", "'module.'"] if wrapped else [])
        ) as caught:
            call(path)
        assert not any(flow in str(caught.value) for flow in FLOWS)
    assert main(["convert", str(path), str(tmp_path / "ours")]) == 1
    assert names(capsys.readouterr().err, *POINTS_TO)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("which", NETWORKS)
def test_networks_of_other_training_code(which: str, tmp_path: Path) -> None:
    torch.save({"model": prefixed(network(which), "module.")}, tmp_path / "model.pt")
    with refused(CheckpointError, tmp_path / "model.pt", *POINTS_TO) as caught:
        fastgen.load(tmp_path / "model.pt")
    assert not any(flow in str(caught.value) for flow in FLOWS)


def test_what_else_it_may_be(tmp_path: Path) -> None:
    """No name tells: both ways are shown."""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    with refused(CheckpointError, tmp_path / "model.pt", *POINTS_TO, *FLOWS, "FlowEngine.from_module"):
        fastgen.load(tmp_path / "model.pt")
    with refused(ConfigError, "torch.nn.modules.linear.Linear", *POINTS_TO, *FLOWS):
        fastgen.load(nn.Linear(2, 2))
    assert not like_denoiser({"encoder.0.weight": (4, 3, 3, 3), "decoder.0.weight": (3, 4, 3, 3)})


def test_a_unets_module_points_to_from_module() -> None:
    diffusers = pytest.importorskip("diffusers")
    from .folders import TINY

    with pytest.raises(ConfigError) as caught:
        fastgen.load(diffusers.UNet2DModel(**TINY))
    assert names(str(caught.value), *POINTS_TO)
    assert not any(flow in str(caught.value) for flow in FLOWS)


def test_accelerates_folder_of_a_unet_without_a_configuration(
    unet: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint_0"
    folder.mkdir()
    save_file(prefixed(unet, "module."), folder / "model.safetensors")
    torch.save({}, folder / "optimizer.bin")
    with refused(CheckpointError, folder, *POINTS_TO, "'module.'"):
        fastgen.load(folder)
    shutil.copy(tmp_path / "unet" / "unet" / "config.json", folder)  # which is what the message says
    assert fastgen.load(folder, device="cpu").sample(1, steps=2, seed=0).isfinite().all()


def test_the_folder_form_that_it_points_to(unet: dict[str, Tensor], tmp_path: Path) -> None:
    """The file itself, once config.json lies beside it; and without it the folder."""
    torch.save({"ema": unet, "epoch": 3}, tmp_path / "model.pt")
    shutil.copy(tmp_path / "unet" / "unet" / "config.json", tmp_path)
    assert detect(tmp_path / "model.pt") is CONVERTERS["diffusers"]
    engine = fastgen.load(tmp_path / "model.pt", device="cpu")
    assert torch.equal(engine.network.state_dict()["conv_in.weight"], unet["conv_in.weight"])


def test_a_destination_with_weights_of_something_else(tmp_path: Path) -> None:
    """It is no model, so converting into it is a matter of `overwrite` alone."""
    folder = tmp_path / "ours"
    folder.mkdir()
    torch.save(nn.Linear(2, 2).state_dict(), folder / "pytorch_model.bin")
    fastgen.convert("zoo:ddpm-mnist", folder, to="diffusers", overwrite=True)
    assert detect(folder) is CONVERTERS["diffusers"]


def test_a_file_of_our_own_points_to_its_folder(tmp_path: Path) -> None:
    fastgen.convert("zoo:ddpm-mnist", tmp_path / "theirs", to="diffusers")
    fastgen.convert(tmp_path / "theirs", tmp_path / "ours")
    path = tmp_path / "ours" / "model.safetensors"
    with refused(CheckpointError, path, tmp_path / "ours"):
        fastgen.load(path)
    (tmp_path / "ours" / "config.json").unlink()
    with refused(CheckpointError, tmp_path / "ours", "config.json"):
        fastgen.load(tmp_path / "ours")
