"""zoo:pix2pix-mnist: what becomes of outlines of digits that it has not seen. Its README states these numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastgen
from fastgen.zoo import folder
from tests.zoo import pix2pix_mnist

HOME = Path(folder("pix2pix-mnist"))


@pytest.mark.real
def test_what_the_readme_states() -> None:
    found = pix2pix_mnist.measure(fastgen.load("zoo:pix2pix-mnist", device="cpu"))
    stated = json.loads((HOME / "quality.json").read_text())
    print(json.dumps(found))
    # Rounding of float32 networks, which differs by machine: a digit may be read otherwise.
    for name, numbers in stated.items():
        assert found[name] == pytest.approx(numbers, abs=0.011), name
    assert found["translated"]["read_right"] >= found["digit"]["read_right"] - 0.02
    assert found["translated"]["psnr"] > found["mean digit"]["psnr"] + 10


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in HOME.iterdir()) < 3 << 20
