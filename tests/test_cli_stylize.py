"""``fastgen stylize``: files, folders, several styles, masks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastgen
from fastgen.cli import main
from fastgen.image_files import read_image_file, write_image_file
from fastgen.zoo import EXAMPLES, example
from tests.refusals import names


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """a.png and b.png, contents; style.png and other.png; left.png, a mask; small.png."""
    random = np.random.default_rng(0)
    sizes = {"a": (30, 41), "b": (24, 24), "style": (32, 28), "other": (32, 28), "small": (4, 4)}
    for name, size in sizes.items():
        colours = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        if name == "other":
            colours = colours // 4 + np.array([150, 20, 60], dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / f"{name}.png")
    mask = np.zeros((60, 82), dtype=np.uint8)
    mask[:, :41] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    Image.fromarray(255 - mask).save(tmp_path / "right.png")
    return tmp_path


def stylize(*arguments: object) -> int:
    return main(["stylize", *map(str, arguments), "--device", "cpu", "--quiet"])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_one_image_by_the_last_input(files: Path, tmp_path: Path) -> None:
    out, want = tmp_path / "out.png", tmp_path / "want.png"
    assert stylize(files / "a.png", files / "style.png", "-o", out, "--alpha", "0.8") == 0
    engine = fastgen.load("zoo:microast", device="cpu")
    content, style = (read_image_file(files / f"{name}.png").tensor() for name in ("a", "style"))
    write_image_file(engine.stylize([content], [style], alpha=0.8)[0], want)
    assert np.abs(pixels(out) - pixels(want)).max() <= 1


def test_a_folder_and_what_is_done_already(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = tmp_path / "contents"
    contents.mkdir()
    for name in ("a.png", "b.png"):
        (files / name).rename(contents / name)
    (contents / "broken.png").write_text("no image")
    arguments = (contents, files / "style.png", "-o", tmp_path / "out", "--json")
    assert stylize(*arguments) == 1
    found = json.loads(capsys.readouterr().out)
    assert (len(found["files"]), [Path(f["file"]).name for f in found["failed"]]) == (2, ["broken.png"])
    (contents / "broken.png").unlink()
    assert stylize(*arguments) == 0
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 2
    assert stylize(*arguments, "--alpha", "0.5") == 1  # of other settings


def test_several_styles(files: Path, tmp_path: Path) -> None:
    both = ["--style", files / "style.png", "--style", files / "other.png"]
    made = {}
    for name, options in {
        "equal": both,
        "first": [*both, "--weights", "1,0"],
        "alone": both[:2],
        "masked": [*both, "--mask", files / "left.png", "--mask", files / "right.png"],
        "coloured": [*both, "--preserve-color"],
    }.items():
        assert stylize(files / "a.png", *options, "-o", tmp_path / f"{name}-out.png") == 0
        made[name] = pixels(tmp_path / f"{name}-out.png")
    assert np.array_equal(made["first"], made["alone"])
    pairs = [(a, b) for a in made for b in made if a < b and {a, b} != {"first", "alone"}]
    assert all(np.abs(made[a] - made[b]).mean() > 1 for a, b in pairs)


def test_examples(tmp_path: Path) -> None:
    for name in EXAMPLES:
        assert example(name).stat().st_size < 200_000
    assert stylize("example:cat", "example:strokes", "-o", tmp_path / "cat.png") == 0
    with Image.open(tmp_path / "cat.png") as image, Image.open(example("cat")) as cat:
        assert image.size == cat.size
        # Blue strokes: the cat is brown.
        mean = np.asarray(image).reshape(-1, 3).mean(0) - np.asarray(cat).reshape(-1, 3).mean(0)
    assert mean[2] > 20 > 0 > mean[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a.png"], "a.png"),
        (["a.png", "example:dog"], "example:dog"),
        (["a.png", "."], "."),
        (["a.png", "small.png"], "small.png"),
        (["a.png", "nothing.png"], "nothing.png"),
        (["a.png", "style.png", "--alpha", "1.5"], "--alpha"),
        (["a.png", "style.png", "--weights", "1,2"], "--weights"),
        (["a.png", "style.png", "--mask", "left.png", "--mask", "right.png"], "--mask"),
        (["a.png", "style.png", "--model", "zoo:ddpm-mnist"], "zoo:ddpm-mnist"),
    ],
)
def test_refused(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(files)
    assert stylize(*arguments, "-o", tmp_path / "out.png") == 1
    assert names(capsys.readouterr().err, named)
    assert not (tmp_path / "out.png").exists()


def test_a_content_that_is_too_small(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stylize(files / "small.png", files / "style.png", "-o", tmp_path / "out.png") == 1
    assert names(capsys.readouterr().err, "small.png", "5 x 5")
