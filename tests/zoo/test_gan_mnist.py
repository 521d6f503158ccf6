"""zoo:gan-mnist: what its README states of the digits it draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgen
from fastgen.images import read_metadata
from fastgen.zoo import folder
from tests import real
from tests.zoo import gan_mnist
from tests.zoo.judge import predict

HOME = Path(folder("gan-mnist"))
STATED = json.loads((HOME / "quality.json").read_text())
# Digits near a border of the classifiers fall on either side of it by rounding, which differs by machine.
ROUNDING = 0.005


def test_its_size() -> None:
    """README and sheet aside, under 3 MB."""
    assert (HOME / "model.safetensors").stat().st_size < 3_000_000
    assert read_metadata(HOME / "sheet.png")["model"] == "zoo:gan-mnist"


def test_labels() -> None:
    """The judge that ships with the tests sees the label asked for in at least 95 of 100 digits."""
    asked = np.arange(200) % 10
    engine = fastgen.load("zoo:gan-mnist", device="cpu")
    drawn = np.asarray(engine.sample(200, seed=1000, labels=asked.tolist(), output_type="np"))[..., 0]
    assert (predict(drawn.astype(np.float64)) == asked).mean() >= 0.95


@pytest.mark.real
def test_what_the_discriminator_takes_for_real() -> None:
    """Digits that neither network has seen score above drawn ones on average, and noise far below both."""
    images, numbers = real.mnist()
    x = torch.tensor(images[9000:9500]).float()[:, None] / 127.5 - 1
    labels = numbers[9000:9500].tolist()
    engine = fastgen.load("zoo:gan-mnist", device="cpu")
    drawn = engine.sample(500, seed=0, labels=labels)
    noise = torch.randn(500, 1, 28, 28, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    by_kind = [float(engine.score(kind, labels=labels).mean()) for kind in (x, drawn, noise)]
    assert by_kind[0] > by_kind[1] > by_kind[2] + 3


def test_verify() -> None:
    found = fastgen.load("zoo:gan-mnist", device="cpu", dtype="float32").verify()
    assert found.passed, str(found)


@pytest.mark.slow
@pytest.mark.real
def test_all_that_the_readme_states() -> None:
    found = gan_mnist.measure(*real.mnist())
    own = str(STATED["default_truncation"])
    for truncation, row in found["by_truncation"].items():
        for name in ("agreement", "judge", "variety"):
            assert row[name] == pytest.approx(STATED["by_truncation"][truncation][name], abs=ROUNDING)
    assert found["by_truncation"][own]["agreement"] >= 0.95
    assert found["by_truncation"][own]["variety"] >= 0.85
    for name in ("nearest_training_digit", "nearest_training_digit_of_held_out"):
        assert found[name] == pytest.approx(STATED[name], abs=0.02)
    assert gan_mnist.table(STATED) in (HOME / "README.md").read_text()
