"""``fastgen reconstruct`` and ``fastgen traverse``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.checkpoint import Part, Spec, save
from fastgen.cli import main
from fastgen.config import to_dict
from fastgen.image_files import read_image_file
from fastgen.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fastgen.models.vae.vae import VAE
from tests.models.vae_models import filled, flat, hierarchical, vector
from tests.refusals import names


def saved(folder: Path, architecture: str, vae: VAE) -> Path:
    config = to_dict(vae.config)
    settings = {"num_classes": vae.classes, "class_names": ["a", "b", "c", "d"]} if vae.classes else {}
    tensors = {f"vae.{name}": value for name, value in vae.state_dict().items()}
    save(folder, Spec("vae", {"vae": Part(architecture, config)}, settings), tensors)
    return folder


def picture(path: Path, size: tuple[int, int] = (12, 10)) -> Path:
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def test_reconstruct(tmp_path: Path) -> None:
    """Files are resized to the model's images; the result is the engine's."""
    model = saved(tmp_path / "model", "vae", flat(num_classes=4))
    source = picture(tmp_path / "a.png")
    out = tmp_path / "out.png"
    call = ["reconstruct", str(source), "-o", str(out), "-m", str(model), "--label", "b", "--quiet"]
    assert main(call) == 0
    image = read_image_file(source, 1).tensor()[None]
    resized = torch.nn.functional.interpolate(image, (8, 8), mode="bilinear", antialias=True)
    wanted = fastgen.load(model).reconstruct(resized, labels=1)[0]
    torch.testing.assert_close(read_image_file(out, 1).tensor(), wanted, rtol=0, atol=1 / 127)


def test_reconstruct_images_of_any_size(tmp_path: Path) -> None:
    """An AutoencoderKL keeps the size of each image, whole or in tiles; a folder has its files."""
    vae = filled(AutoencoderKL(AutoencoderKLConfig(block_out_channels=(4, 8), norm_num_groups=2)))
    model = saved(tmp_path / "model", "autoencoder_kl", vae)
    folder = tmp_path / "in"
    folder.mkdir()
    for name, size in (("a.png", (13, 11)), ("b.png", (24, 20))):
        picture(folder / name, size)
    for out, more in (("whole", []), ("tiles", ["--tile", "16"])):
        assert (
            main(["reconstruct", str(folder), "-o", str(tmp_path / out), "-m", str(model), *more, "--quiet"])
            == 0
        )
        assert Image.open(tmp_path / out / "a.png").size == (11, 13)
        assert Image.open(tmp_path / out / "b.png").size == (20, 24)


def test_traverse(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A row for each latent, or for those that are named, of a group; around the latents of an image."""
    model = saved(tmp_path / "model", "hvae", hierarchical())
    out = tmp_path / "sheet.png"
    call = ["traverse", "-m", str(model), "-o", str(out), "--group", "1", "--steps", "3", "--json"]
    assert main(call) == 0
    assert json.loads(capsys.readouterr().out) == {
        "files": [str(out)],
        "dimensions": [0, 1],
        "group": 1,
        "steps": 3,
    }
    assert main([*call, "--image", str(picture(tmp_path / "a.png"))]) == 1  # it would be replaced
    assert main([*call, "--image", str(tmp_path / "a.png"), "--dimensions", "1", "--overwrite"]) == 0
    assert Image.open(out).size[1] < Image.open(out).size[0]


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In words, by the flag."""
    labelled = str(saved(tmp_path / "labelled", "vae", flat(num_classes=4)))
    plain = str(saved(tmp_path / "plain", "vae", flat()))
    rows = str(saved(tmp_path / "rows", "vector_vae", vector()))
    out, source = str(tmp_path / "o.png"), str(picture(tmp_path / "a.png"))
    for arguments, said in (
        (["traverse", "-m", labelled, "-o", out], "--label"),
        (["traverse", "-m", plain, "-o", out, "--label", "1"], "--label"),
        (["traverse", "-m", plain, "-o", out, "--dimensions", "2-3"], "--dimensions"),
        (["traverse", "-m", plain, "-o", out, "--group", "1"], "--group"),
        (["traverse", "-m", rows, "-o", out], rows),
        (["traverse", "-m", "zoo:ddpm-mnist", "-o", out], "zoo:ddpm-mnist"),
        (["reconstruct", source, "-m", plain, "-o", out, "--tile", "16"], "--tile"),
        (["reconstruct", source, "-m", rows, "-o", out], rows),
    ):
        assert main(arguments) == 1, arguments
        assert names(capsys.readouterr().err, said), arguments
    assert not Path(out).exists()
