"""``fastgen upscale``: Set5, transparency and EXIF, runs that were killed, files that fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.checkpoint import Part, Spec, save
from fastgen.cli import main
from fastgen.image_files import read_image_file
from fastgen.metrics.pairs import cropped, luma, psnr
from fastgen.models.upscale.srvgg import SRVGG, SRVGGConfig
from tests import real
from tests.refusals import names

SIZE = (14, 22)


def model(folder: Path) -> str:
    """x2, of random weights."""
    torch.manual_seed(0)
    values = {"scale": 2, "num_features": 4, "num_convs": 1}
    tensors = {f"upscaler.{k}": v for k, v in SRVGG(SRVGGConfig(**values)).state_dict().items()}
    save(folder, Spec("upscale", {"upscaler": Part("srvgg", values)}), tensors)
    return str(folder)


def draw(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, len(mode)), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments), "--quiet", "--device", "cpu"])


def test_a_folder_is_what_the_engine_makes(tmp_path: Path) -> None:
    where, sizes = model(tmp_path / "model"), [SIZE, (31, 17), (1, 1)]
    for i, size in enumerate(sizes):
        draw(tmp_path / "in" / "below" / f"{i}.png", i, size)
    engine = fastgen.load(where, device="cpu")
    sheet = tmp_path / "sheet.png"
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "-m", where, "--batch", 2, "--sheet", sheet) == 0
    assert upscale(tmp_path / "in", "-o", tmp_path / "half", "-m", where, "--outscale", 1.5, "--tile", 8) == 0
    for i, (height, width) in enumerate(sizes):
        given = read_image_file(tmp_path / "in" / "below" / f"{i}.png").pixels
        found = read_image_file(tmp_path / "out" / "below" / f"{i}.png")
        assert found.size == (2 * height, 2 * width)
        assert (
            int((found.pixels.int() - engine.upscale(given).int()).abs().max()) <= 1
        )  # convolutions in batches
        resized = read_image_file(tmp_path / "half" / "below" / f"{i}.png")
        assert resized.size == (max(1, round(1.5 * height)), max(1, round(1.5 * width)))
    assert read_image_file(sheet).size[0] > 256


def test_transparency_and_exif_are_kept(tmp_path: Path) -> None:
    where, source = model(tmp_path / "model"), tmp_path / "a.png"
    values = np.full((*SIZE, 4), 90, dtype=np.uint8)
    values[:, :11, 3], values[:, 11:, 3] = 0, 255
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(values).save(source, exif=exif)
    assert upscale(source, "-o", tmp_path / "b.png", "-m", where) == 0
    with Image.open(tmp_path / "b.png") as made:
        alpha = np.asarray(made)[..., 3]
        assert made.getexif()[0x010F] == "a camera"
    assert alpha.shape == (28, 44)
    assert (alpha[:, :18] == 0).all()
    assert (alpha[:, -18:] == 255).all()


def test_files_that_fail_and_large_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = model(tmp_path / "model")
    draw(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_text("no image")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "-m", where) == 1
    assert names(capsys.readouterr().err, "bad.png")
    assert (tmp_path / "out" / "good.png").exists()
    large = draw(tmp_path / "large.png", size=(20, 20))
    assert upscale(large, "-o", tmp_path / "b.png", "-m", where, "--max-pixels", 399) == 1
    assert names(capsys.readouterr().err, "large.png", 399)
    assert upscale(large, "-o", tmp_path / "b.png", "-m", where, "--max-pixels", 400) == 0
    assert upscale(large, "-o", tmp_path / "c.png", "-m", "zoo:glow-mnist") == 1
    assert names(capsys.readouterr().err, "zoo:glow-mnist")


def test_wrong_flags_and_formats_are_known_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, source = model(tmp_path / "model"), draw(tmp_path / "in" / "a.png")
    for flags in (["--tile", -5], ["--tile-overlap", -1]):
        assert upscale(source.parent, "-o", tmp_path / "out", "-m", where, *flags) == 1
        assert names(capsys.readouterr().err, flags[0])
        assert not (tmp_path / "out").exists()
    wide = draw(tmp_path / "wide" / "w.png", size=(1, 9000))
    monkeypatch.setattr("fastgen.engines.upscale.engine.UpscaleEngine.upscale", None)  # it is not called
    assert upscale(wide.parent, "-o", tmp_path / "out", "-m", where, "--format", "webp") == 1
    assert names(capsys.readouterr().err, 18000)
    monkeypatch.undo()
    # What failed has claimed nothing: other flags may be used there.
    assert upscale(wide.parent, "-o", tmp_path / "out", "-m", where, "--scale", 1, "--format", "webp") == 0


def test_a_model_is_told_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by how its path is written, nor do tiles that change nothing count."""
    where = model(tmp_path / "model")
    draw(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert upscale("in", "-o", "out", "-m", where) == 0
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert upscale("in", "-o", "out", "-m", "./model", "--tile", 8, "--tile-overlap", "exact") == 0
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """What was written stays as it is, the rest is made; nothing is half written."""
    where, out, count = model(tmp_path / "model"), tmp_path / "out", 40
    for i in range(count):
        draw(tmp_path / "in" / f"{i:03}.png", i, (160, 160))
    command = ["upscale", str(tmp_path / "in"), "-o", str(out), "-m", where, "--quiet", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "fastgen", *command])
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 2 <= len(before) < count
    assert main(command) == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert len(after) == count
    # The kill may have come between an image and the note that it is there: that one is made again.
    assert sum(after[name] != stamp for name, stamp in before.items()) <= 1
    assert all(read_image_file(path).size == (320, 320) for path in out.glob("*.png"))


@pytest.mark.real
@pytest.mark.parametrize(("scale", "expected"), [(2, 35.49), (4, 30.66)])
def test_set5(scale: int, expected: float, tmp_path: Path) -> None:
    """Luma PSNR without a border of `scale` pixels, by the authors' weights and by the zoo's, which are rounded."""
    data = real.folder() / f"data/set5/image_SRF_{scale}"
    for path in data.glob("*_LR.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "in" / path.name)
    weights = real.folder() / f"weights/srgan/netG_epoch_{scale}_100.pth"
    for which, name in enumerate((weights, f"zoo:srgan-x{scale}")):
        out = tmp_path / str(which)
        assert upscale(tmp_path / "in", "-o", out, "-m", name) == 0
        found = []
        for path in sorted(out.glob("*.png")):
            truth = data / path.name.replace("_LR", "_HR")
            made, wanted = (luma(read_image_file(file).pixels) for file in (path, truth))
            found.append(psnr(cropped(made, scale), cropped(wanted, scale)))
        assert len(found) == 5
        assert abs(sum(found) / 5 - expected) <= 0.02, found
