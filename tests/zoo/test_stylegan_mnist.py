"""zoo:stylegan-mnist: what its README states of the digits it draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import fastgen
from fastgen.images import read_metadata
from fastgen.zoo import folder
from tests import real
from tests.zoo import stylegan_mnist
from tests.zoo.judge import entropy, probabilities

HOME = Path(folder("stylegan-mnist"))
STATED = json.loads((HOME / "quality.json").read_text())
# Digits near a border of the classifiers fall on either side of it by rounding, which differs by machine.
ROUNDING = 0.005


def test_its_size() -> None:
    """README and sheet aside, under 4 MB."""
    assert (HOME / "model.safetensors").stat().st_size < 4_000_000
    assert read_metadata(HOME / "sheet.png")["model"] == "zoo:stylegan-mnist"


def test_entropy() -> None:
    """log 10 of ten labels that occur equally often, 0 of one, and a value written out."""
    assert entropy(np.arange(100) % 10) == pytest.approx(math.log(10), abs=1e-12)
    assert entropy(np.full(7, 3)) == 0.0
    assert entropy(np.array([0, 0, 0, 9])) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_labels() -> None:
    """The judge that ships with the tests is as sure of the labels asked for as the page says, less what 200 digits of
    other seeds differ by; and labels that occur equally often are seen so.
    """
    asked = np.arange(200) % 10
    engine = fastgen.load("zoo:stylegan-mnist", device="cpu")
    drawn = np.asarray(engine.sample(200, seed=1000, labels=asked.tolist(), output_type="np"))[..., 0]
    odds = probabilities(drawn.astype(np.float64))
    seen, stated = odds.argmax(1), STATED["by_psi"][str(STATED["default_psi"])]
    # five standard deviations of a share of 200
    share = stated["judge"]
    assert (seen == asked).mean() >= share - 5 * math.sqrt(share * (1 - share) / 200)
    assert odds.max(1).mean() >= stated["confidence"] - 0.03
    assert entropy(seen) >= math.log(10) - 0.05


def test_psi_of_the_mean() -> None:
    """At psi 0 all seeds give one image."""
    engine = fastgen.load("zoo:stylegan-mnist", device="cpu", dtype="float32")
    drawn = engine.sample(3, seed=0, labels=4, truncation_psi=0)
    # float32, where an image's place in a batch rounds differently: sums of hundreds of products, through 12 layers
    assert float((drawn - drawn[:1]).abs().max()) < 1e-5


def test_verify() -> None:
    found = fastgen.load("zoo:stylegan-mnist", device="cpu", dtype="float32").verify()
    assert found.passed, str(found)


@pytest.mark.slow
@pytest.mark.real
def test_all_that_the_readme_states() -> None:
    found = stylegan_mnist.measure(*real.mnist())
    own = str(STATED["default_psi"])
    for psi, row in found["by_psi"].items():
        for name in ("agreement", "judge", "confidence", "variety"):
            assert row[name] == pytest.approx(STATED["by_psi"][psi][name], abs=ROUNDING)
        assert row["entropy"] == pytest.approx(STATED["by_psi"][psi]["entropy"], abs=2 * ROUNDING)
    assert found["by_psi"][own]["judge"] >= 0.9
    assert found["by_psi"][own]["entropy"] >= math.log(10) - 0.02
    for name in ("nearest_training_digit", "nearest_training_digit_of_held_out"):
        assert found[name] == pytest.approx(STATED[name], abs=0.02)
    assert stylegan_mnist.table(STATED) in (HOME / "README.md").read_text()
