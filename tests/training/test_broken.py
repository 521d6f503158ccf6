"""An image that breaks within a run: what was trained is kept, and the message's way out works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastgen
from fastgen.cli import main
from fastgen.training.loop import LOSS_FILE
from fastgen.training.run import STATE_FILE, saved_run
from tests.refusals import names

COUNT, STEPS, BATCH = 12, 9, 2
OPTIONS = [
    "--size",
    "8",
    "--widths",
    "8,8",
    "--batch-size",
    str(BATCH),
    "--warmup",
    "1",
    "--precision",
    "fp32",
]
OPTIONS += ["--steps", str(STEPS), "--save-every", "100", "--preview-every", "0", "--quiet"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of which one has a whole header and half of its pixels."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def damage(path: Path) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def steps_done(model: Path) -> int:
    return len(np.loadtxt(model / LOSS_FILE, delimiter=",", skiprows=1, ndmin=2))


def late_image(data: Path, tmp_path: Path) -> Path:
    """An image that no run with these options sees in its first batches, found by trying."""
    for path in sorted(data.iterdir()):
        whole = damage(path)
        model = tmp_path / f"try-{path.stem}"
        assert main(["train", str(model), "--data", str(data), *OPTIONS]) == 1
        path.write_bytes(whole)
        if (model / STATE_FILE).exists() and steps_done(model) >= 2:
            return path
    raise AssertionError("every image is in the first batches")


@pytest.mark.parametrize("way", ["mended", "removed"])
def test_the_steps_before_it_are_saved_and_the_run_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    assert main(["train", str(tmp_path / "whole"), "--data", str(data), *OPTIONS]) == 0
    broken = late_image(data, tmp_path)
    whole = damage(broken)
    model = tmp_path / "model"
    capsys.readouterr()
    assert main(["train", str(model), "--data", str(data), *OPTIONS]) == 1
    error = capsys.readouterr().err
    done = steps_done(model)
    assert 2 <= done < STEPS
    assert names(error, broken, done, "--resume", "--changed-data")
    assert fastgen.load(model).sample(1, steps=1, seed=0).isfinite().all()
    if way == "mended":
        broken.write_bytes(whole)
        assert main(["train", str(model), "--resume", "--quiet"]) == 0
        for file in (STATE_FILE, "model.safetensors"):  # as if nothing had happened, to the bit
            one, other = ((tmp_path / run / file).read_bytes() for run in ("whole", "model"))
            assert one == other
        return
    broken.unlink()
    assert main(["train", str(model), "--resume", "--quiet"]) == 1
    assert names(capsys.readouterr().err, COUNT, COUNT - 1, "--changed-data")
    assert main(["train", str(model), "--resume", "--changed-data", "--quiet"]) == 0
    assert steps_done(model) == STEPS
    run = saved_run(model)
    assert run is not None
    assert run.data["pictures"] == COUNT - 1
    assert main(["train", str(model), "--resume", "--quiet"]) == 0  # the new number is the run's own


def test_a_broken_header_costs_no_step(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "05.png").write_bytes(b"GIF89a")
    assert main(["train", str(tmp_path / "model"), "--data", str(data), *OPTIONS]) == 1
    assert names(capsys.readouterr().err, data / "05.png")
    assert not (tmp_path / "model").exists()


def test_nothing_to_save_in_the_first_batch(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data.iterdir():
        damage(path)
    assert main(["train", str(tmp_path / "model"), "--data", str(data), *OPTIONS]) == 1
    assert not names(capsys.readouterr().err, "--resume")
    assert not (tmp_path / "model").exists()


def test_changed_data_belongs_to_resume(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "model"), "--data", str(data), "--changed-data", *OPTIONS])
    assert names(capsys.readouterr().err, "--changed-data", "--resume")
