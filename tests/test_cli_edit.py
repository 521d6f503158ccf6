"""``fastgen edit``, ``fastgen inpaint`` and ``fastgen interpolate`` of a diffusion model: files in, files out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import fastgen
from fastgen.cli import main
from fastgen.image_files import read_image_file
from tests.refusals import names
from tests.small import checkpoint

SIZE = (8, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("models") / "m", class_names=["ant", "bee", "cat"]))


def drawn(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def hidden(path: Path) -> Path:
    """White on the right: what is filled in."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[:, 5:] = 255
    Image.fromarray(mask).save(path)
    return path


def fastgen_(*arguments: object) -> int:
    return main([*map(str, arguments), "--device", "cpu"])


def tensor(path: Path) -> Tensor:
    return read_image_file(path, 1).tensor()


def test_edit_is_the_engines(tmp_path: Path, model: str) -> None:
    """Whatever the batch; the same command goes on, another one is refused."""
    for i in range(3):
        drawn(tmp_path / "in" / f"{i}.png", i)
    call = ["edit", tmp_path / "in", "-m", model, "--strength", 0.6, "--label", "bee", "--seed", 4, "--quiet"]
    engine = fastgen.load(model, device="cpu")
    for batch in (1, 3):
        out = tmp_path / f"out{batch}"
        assert fastgen_(*call, "-o", out, "--batch", batch, "--sheet", tmp_path / f"{batch}.png") == 0
        for i in range(3):
            wanted = engine.edit(tensor(tmp_path / "in" / f"{i}.png"), 0.6, labels=1, seed=4)[0]
            # Half a level of rounding, and convolutions that round by the batch.
            assert float((tensor(out / f"{i}.png") - wanted).abs().max()) <= 1 / 255 + 1e-4
        with Image.open(tmp_path / f"{batch}.png") as sheet:
            assert min(sheet.size) > 2 * 3 * SIZE[0]
    assert fastgen_(*call, "-o", tmp_path / "out1") == 0  # done before
    call[call.index("--strength") + 1] = 0.4
    assert fastgen_(*call, "-o", tmp_path / "out1") == 1


@pytest.mark.parametrize("method", ["replace", "repaint"])
def test_inpaint_keeps_the_files_own_pixels(
    tmp_path: Path, model: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, mask = drawn(tmp_path / "a.png"), hidden(tmp_path / "mask.png")
    call = [
        "inpaint",
        source,
        "-m",
        model,
        "--mask",
        mask,
        "--method",
        method,
        "--json",
        "-o",
        tmp_path / "b.png",
    ]
    more = ["--jump-length", 1, "--resamples", 2, "--steps", 4] if method == "repaint" else ["--steps", 4]
    assert fastgen_(*call, *more) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == [str(tmp_path / "b.png")]
    before, after = (np.asarray(Image.open(path)) for path in (source, tmp_path / "b.png"))
    assert np.array_equal(before[:, :5], after[:, :5])
    assert not np.array_equal(before[:, 5:], after[:, 5:])


def test_other_sizes_are_resized(tmp_path: Path, model: str) -> None:
    source, mask = drawn(tmp_path / "a.png", size=(20, 31)), hidden(tmp_path / "mask.png")
    Image.open(mask).resize((40, 24)).save(tmp_path / "large.png")
    out = tmp_path / "b.png"
    assert (
        fastgen_("inpaint", source, "-m", model, "--mask", tmp_path / "large.png", "-o", out, "--steps", 2)
        == 0
    )
    assert read_image_file(out, 1).size == SIZE


def test_wrong_flags_are_named(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, mask = drawn(tmp_path / "a.png"), hidden(tmp_path / "mask.png")
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(black)
    out = tmp_path / "b.png"
    for arguments, about in (
        (["edit", source, "-o", out, "--strength", 0], "--strength"),
        (["edit", source, "-o", out, "--strength", 0.01], "strength"),
        (["edit", source, "-o", out, "--label", "dog"], "dog"),
        (["edit", source, "-o", out, "--steps", "5,6"], "--steps"),
        (["edit", source, "-o", out, "--option", "nothing=1"], "--option"),
        (["inpaint", source, "-o", out, "--mask", tmp_path / "none.png"], "none.png"),
        (["inpaint", source, "-o", out, "--mask", black], "mask"),
        (
            ["inpaint", source, "-o", out, "--mask", mask, "--method", "replace", "--resamples", 3],
            "--resamples",
        ),
        (["inpaint", source, "-o", mask, "--mask", mask, "--overwrite"], "mask.png"),
    ):
        assert fastgen_(*arguments, "-m", model) == 1, arguments
        assert names(capsys.readouterr().err, about), arguments
        assert not out.exists()
    assert fastgen_("edit", source, "-o", out, "-m", "zoo:vae-mnist") == 1
    assert names(capsys.readouterr().err, "zoo:vae-mnist", "diffusion")


def test_interpolate_seeds_and_images(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png", 1)
    call = ["interpolate", "-m", model, "--frames", 2, "--steps", 3, "--labels", "ant,cat"]
    assert fastgen_(*call, "--seeds", "3,5", "-o", tmp_path / "seeds.gif") == 0
    assert fastgen_(*call, "--images", a, b, "-o", tmp_path / "images.gif") == 0
    for name in ("seeds.gif", "images.gif"):
        with Image.open(tmp_path / name) as gif:
            assert gif.n_frames == 4
    capsys.readouterr()
    for arguments, about in (
        ([*call, "--images", a, "-o", tmp_path / "c.gif"], "--images"),
        ([*call, "--images", a, b, "--seeds", "1,2", "-o", tmp_path / "c.gif"], "--seeds, --images"),
        ([*call, "--truncation", 0.5, "-o", tmp_path / "c.gif"], "--truncation"),
        (["interpolate", "--steps", 3, "-o", tmp_path / "c.gif"], "--steps"),
        (["interpolate", "-m", "zoo:vae-mnist", "-o", tmp_path / "c.gif"], "zoo:vae-mnist"),
    ):
        assert fastgen_(*arguments) == 1, arguments
        assert names(capsys.readouterr().err, about), arguments
