"""``fastgen translate``: what it writes is what the engine makes; seeds, models of other families, files that fail."""

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
from fastgen.image_files import read_image_file
from tests import small
from tests.engines.translations import PATCH, RESNET, network
from tests.refusals import names

SIZE = (24, 36)


def model(folder: Path, *, dropout: bool = True, judge: bool = True) -> str:
    """RGB to RGB, of random weights."""
    config = {**RESNET.config, "out_channels": 3, "dropout": dropout, "norm": "instance"}
    parts = {"generator": Part("resnet_generator", config), **({"discriminator": PATCH} if judge else {})}
    tensors = {
        f"{name}.{key}": value
        for name, part in parts.items()
        for key, value in network(part).state_dict().items()
    }
    save(folder, Spec("translate", parts, {}), tensors)
    return str(folder)


def draw(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def translate(*arguments: object) -> int:
    return main(["translate", *map(str, arguments), "--quiet", "--device", "cpu"])


def test_a_folder_is_what_the_engine_makes(tmp_path: Path) -> None:
    """Of unlike sizes, with dropout by one seed for each image, whatever the batch."""
    where = model(tmp_path / "model")
    sizes = [SIZE, SIZE, (17, 23), (1, 1)]
    for i, size in enumerate(sizes):
        draw(tmp_path / "in" / f"{i}.png", i, size)
    engine = fastgen.load(where, device="cpu")
    for batch in (1, 3):
        out = tmp_path / f"out{batch}"
        assert translate(tmp_path / "in", "-o", out, "-m", where, "--seed", 5, "--batch", batch) == 0
        for i in range(4):
            given = read_image_file(tmp_path / "in" / f"{i}.png").tensor()
            (expected,) = engine.translate([given], seeds=[5])
            found = read_image_file(out / f"{i}.png")
            assert found.size == sizes[i]
            # Half a level of rounding, and convolutions that round by the batch.
            assert float((found.tensor() - expected).abs().max()) <= 1 / 255 + 1e-4
    assert translate(tmp_path / "in", "-o", tmp_path / "plain", "-m", where) == 0  # without dropout
    one, two = (read_image_file(tmp_path / name / "0.png").pixels for name in ("plain", "out1"))
    assert not torch.equal(one, two)


def test_alpha_is_kept(tmp_path: Path) -> None:
    where, source = model(tmp_path / "model"), draw(tmp_path / "a.png", channels=4)
    assert translate(source, "-o", tmp_path / "b.png", "-m", where) == 0
    with Image.open(source) as before, Image.open(tmp_path / "b.png") as after:
        assert np.array_equal(np.asarray(before)[..., 3], np.asarray(after)[..., 3])


def test_the_best_of_several(tmp_path: Path) -> None:
    where, source = model(tmp_path / "model"), draw(tmp_path / "a.png")
    assert translate(source, "-o", tmp_path / "b.png", "-m", where, "--best-of", 3, "--seed", 7) == 0
    engine = fastgen.load(where, device="cpu")
    x = read_image_file(source).tensor()[None]
    tries = [engine.translate(x, seed=seed) for seed in (7, 8, 9)]
    best = max(tries, key=lambda y: float(engine.score(x, y)))
    found = read_image_file(tmp_path / "b.png").tensor()
    assert float((found - best[0]).abs().max()) <= 1 / 255 + 1e-4


def test_the_model_of_the_zoo_is_the_default(tmp_path: Path) -> None:
    """It is grey: a coloured drawing is read as grey."""
    source = draw(tmp_path / "a.png", size=(28, 28))
    assert translate(source, "-o", tmp_path / "b.png") == 0
    with Image.open(tmp_path / "b.png") as file:
        assert (file.mode, file.size) == ("L", (28, 28))


def test_files_that_fail_leave_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, folder = model(tmp_path / "model"), tmp_path / "in"
    draw(folder / "good.png")
    draw(folder / "pixel.png", size=(1, 1))
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(folder / "deep.png")
    Image.new("CMYK", SIZE).save(folder / "print.jpg")
    (folder / "text.png").write_text("no image")
    frames = [Image.fromarray(np.full((*SIZE, 3), i, np.uint8)) for i in (0, 200)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "fold.png").mkdir()
    assert translate(folder, "-o", tmp_path / "out", "-m", where, "--json", "--batch", 4) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert sorted(Path(f["file"]).name for f in found["failed"]) == ["gone.png", "moving.gif", "text.png"]
    assert sorted(Path(f).name for f in found["files"]) == ["deep.png", "good.png", "pixel.png", "print.jpg"]
    assert len(said.err.splitlines()) == 3
    assert names(said.err, folder / "text.png", folder / "moving.gif", folder / "gone.png")
    assert all(Path(file).exists() for file in found["files"])


def test_models_that_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = draw(tmp_path / "a.png")
    denoiser = str(small.checkpoint(tmp_path / "denoiser"))
    assert translate(source, "-o", tmp_path / "b.png", "-m", denoiser) == 1
    assert names(capsys.readouterr().err, denoiser, "diffusion", "translate")
    plain = model(tmp_path / "plain", dropout=False, judge=False)
    noisy = model(tmp_path / "noisy", judge=False)
    for where, flags, mentioned in (
        (plain, ["--best-of", 2], "--best-of"),
        (plain, ["--seed", 1], "--seed"),
        (plain, ["--dropout"], "--dropout"),
        (plain, ["--best-of", 2, "--no-dropout"], "--best-of"),
        (noisy, ["--best-of", 2], "--best-of"),  # no discriminator
        (noisy, ["--seed", -1], "--seed"),
        (noisy, ["--seed", 1 << 64], "--seed"),
    ):
        assert translate(source, "-o", tmp_path / "out", "-m", where, *flags) == 1
        assert names(capsys.readouterr().err, mentioned)
        assert not (tmp_path / "out").exists()  # it is known before anything is made
    assert not (tmp_path / "b.png").exists()


def test_previews_while_training(tmp_path: Path) -> None:
    """A sheet of input, result and target."""
    for folder, seed in (("x", 0), ("y", 1)):
        draw(tmp_path / folder / "1.png", seed, (8, 8))
    arguments = ["--model", "resnet_generator", "--ngf", "2", "--ndf", "2", "--blocks", "1", "--steps", "1"]
    data = ["--data", str(tmp_path / "x"), "--target", str(tmp_path / "y"), "--size", "8"]
    assert main(["train", str(tmp_path / "run"), *arguments, *data, "--quiet", "--device", "cpu"]) == 0
    (sheet,) = (tmp_path / "run" / "previews").iterdir()
    with Image.open(sheet) as file:
        assert file.width > 3 * 8
        first = np.asarray(file)[2:10, 2:10]
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "x" / "1.png")))
