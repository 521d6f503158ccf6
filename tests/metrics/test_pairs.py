"""L1, PSNR and luma of images beside those that they should be; and the command that prints them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.cli import main
from fastgen.errors import ConfigError
from fastgen.metrics.pairs import cropped, l1, luma, over_white, psnr
from tests.refusals import names, refused


def random(seed: int, size: tuple[int, int] = (7, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_formulas_in_numpy() -> None:
    a, b = (random(seed).astype(np.float64) for seed in (0, 1))
    x, y = (torch.from_numpy(v).permute(2, 0, 1) for v in (a, b))
    assert l1(x, y) == pytest.approx(np.abs(a - b).mean() / 255, rel=1e-12)
    assert psnr(x, y) == pytest.approx(20 * np.log10(255 / np.sqrt(((a - b) ** 2).mean())), rel=1e-12)
    assert psnr(x, x) == math.inf


def test_bytes_do_not_wrap() -> None:
    assert l1(torch.zeros(1, 1, 1, dtype=torch.uint8), torch.full((1, 1, 1), 255, dtype=torch.uint8)) == 1


def test_luma() -> None:
    """Black is 16, white 235 (MATLAB's rgb2ycbcr); grey lies on the line between; 219 / 255 of Pillow's full range."""
    for level in (0, 51, 255):
        grey = torch.full((3, 1, 1), level, dtype=torch.uint8)
        assert float(luma(grey)) == pytest.approx(16 + 219 * level / 255, abs=1e-3)
    image = random(2)
    full = np.asarray(Image.fromarray(image).convert("L"))  # rounded to whole numbers
    found = luma(torch.from_numpy(image).permute(2, 0, 1))[0].numpy()
    assert np.abs((found - 16) * 255 / 219 - full).max() < 0.51


def test_cropped() -> None:
    x = torch.arange(35).view(1, 5, 7)
    assert torch.equal(cropped(x, 2), x[:, 2:3, 2:5])
    assert torch.equal(cropped(x, 0), x)
    with refused(ConfigError, "crop", 3, "5x7"):
        cropped(x, 3)
    for border in (-1, 1.0):
        with refused(ConfigError, "crop", border):
            cropped(x, border)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 1), (5, 7)])
def test_unequal_shapes(shape: tuple[int, ...]) -> None:
    for number in (l1, psnr):
        with refused(ConfigError, "truth", [3, 5, 7], list(shape)):
            number(torch.zeros(3, 5, 7), torch.zeros(shape))
    with refused(ConfigError, "image", [1, 5, 7]):
        luma(torch.zeros(1, 5, 7))


def transparent(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 9, 4), dtype=np.uint8))


def test_over_white() -> None:
    """As Pillow composites, which rounds the share of each colour: a level apart at most."""
    image = transparent(0)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    made = over_white(values[:3], values[3])
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    off = made.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected, dtype=int)
    assert made.dtype == torch.uint8
    assert np.abs(off).max() <= 1
    assert torch.equal(over_white(values[:3], None), values[:3])
    clear = torch.zeros(7, 9, dtype=torch.uint8)
    assert bool((over_white(values[:3], clear) == 255).all())
    assert torch.equal(over_white(values[:3], clear + 255), values[:3])


def test_transparency_counts_as_white(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever colours lie under it; one warning says so."""
    for seed in (0, 1):
        image = transparent(seed)
        image.putalpha(0)
        image.save(tmp_path / f"{seed}.png")
    paths = [str(tmp_path / f"{seed}.png") for seed in (0, 1)]
    assert main(["compare", *paths, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["l1"] == 0
    (line,) = said.err.splitlines()
    assert names(line, "warning", paths[0], 1)


def test_names_are_harmless_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("made", "truth"):
        (tmp_path / folder).mkdir()
        Image.fromarray(random(0)).save(tmp_path / folder / "a\x1b[2Jb\n.png")
    assert main(["compare", str(tmp_path / "made"), str(tmp_path / "truth"), "--each"]) == 0
    first, _ = capsys.readouterr().out.splitlines()
    assert first.isprintable()
    assert names(first, r"a\x1b[2Jb\n")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, ending, suffix in (("made", "_fake", "png"), ("truth", "", "bmp")):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(random(i + 10 * (name == "made"))).save(tmp_path / name / f"{i}{ending}.{suffix}")
    return tmp_path / "made", tmp_path / "truth"


def test_two_folders(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    made, truth = folders
    assert main(["compare", str(made), str(truth), "--crop", "1", "--luma", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = []
    for i in range(3):
        y = [luma(torch.from_numpy(random(seed)[1:-1, 1:-1].copy()).permute(2, 0, 1)) for seed in (i, i + 10)]
        values.append(psnr(y[1], y[0]))
        assert found["images"][str(i)]["psnr"] == pytest.approx(values[-1], rel=1e-12)
    assert found["count"] == 3
    assert found["psnr"] == pytest.approx(np.mean(values), rel=1e-12)
    assert main(["compare", str(made), str(truth), "--each"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_two_files_and_equal_ones(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(folders[0] / "0_fake.png")
    assert main(["compare", path, path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr"] is None
    assert main(["compare", path, path]) == 0
    assert names(capsys.readouterr().out, "inf")


def test_what_cannot_be_compared(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    made, truth = folders
    small = truth / "2.bmp"
    assert main(["compare", str(made), str(small)]) == 1
    Image.fromarray(random(0, (3, 4))).save(small)
    assert main(["compare", str(made), str(truth)]) == 1
    assert names(capsys.readouterr().err, made / "2_fake.png", "4x3", "9x7")
    small.unlink()
    assert main(["compare", str(made), str(truth)]) == 1
    assert main(["compare", str(made), str(made), "--crop", "-1"]) == 1
    assert names(capsys.readouterr().err, "--crop")
