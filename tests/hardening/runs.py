"""A training run so small that it can be killed a hundred times, and what must hold of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import fastgen
from fastgen.checkpoint import CONFIG_FILE, WEIGHTS_FILE, file_sha256
from fastgen.tensor_file import TensorFile
from fastgen.training.loop import LOSS_FILE, PREVIEWS
from fastgen.training.run import STATE_FILE, saved_run

STEPS = 6


def images(folder: Path) -> Path:
    """An NPZ file of 12 images of 2 classes."""
    path = folder / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(12) % 2)
    return path


def train_arguments(folder: Path, data: Path, preview_every: int = STEPS) -> list[str]:
    """The command that begins the run: two saves, and one more before a preview that comes earlier."""
    words = f"--steps {STEPS} --save-every 3 --preview-every {preview_every} --batch-size 4 --warmup 1 --widths 8,8"
    return [
        "train",
        str(folder),
        "--data",
        str(data),
        *words.split(),
        "--precision",
        "fp32",
        "--quiet",
        "--device",
        "cpu",
    ]


def resume_arguments(folder: Path) -> list[str]:
    return ["train", str(folder), "--resume", "--quiet", "--device", "cpu"]


def next_arguments(folder: Path, begin: list[str]) -> list[str]:
    """What a user types after the power came back: --resume where there is a run, else the first command again."""
    return resume_arguments(folder) if (folder / STATE_FILE).exists() else begin


def digests(folder: Path) -> dict[str, str]:
    """Every file of a run, leftovers included, by its bytes."""
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def check_run(folder: Path) -> None:
    """Every file of a run that is there is whole, whenever it was killed."""
    if (folder / STATE_FILE).exists():
        assert saved_run(folder) is not None
        with TensorFile(folder / STATE_FILE) as file:
            assert sum(1 for _ in file.read({})) == len(file.entries)
    if (folder / CONFIG_FILE).exists():
        json.loads((folder / CONFIG_FILE).read_text())
        if (folder / WEIGHTS_FILE).exists():  # the very first save writes the config before the weights
            assert fastgen.load(folder).sample(1, seed=0, steps=1).isfinite().all()
    if (folder / LOSS_FILE).exists():
        head, *rows = (folder / LOSS_FILE).read_text().splitlines()
        assert head == "step,loss"
        assert [int(row.split(",")[0]) for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) in (2, 3, STEPS)
    for path in folder.glob(f"{PREVIEWS}/*.png"):
        check_image(path)


def check_image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
