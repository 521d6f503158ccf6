"""zoo:vae-mnist: the bits per dimension of digits it has not seen. Its README states these numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastgen
from fastgen.images import read_metadata
from fastgen.zoo import folder
from tests.zoo import judge, vae_mnist

HOME = Path(folder("vae-mnist"))
REPEATED = 1e-4  # rounding of float32 networks, which differs by machine, is far below it


def stated() -> dict[str, Any]:
    return json.loads((HOME / "quality.json").read_text())


def engine() -> Any:
    return fastgen.load("zoo:vae-mnist", device="cpu")


def test_the_folder() -> None:
    """Small, and its sheet says how it was drawn."""
    assert (HOME / "model.safetensors").stat().st_size < 2e6
    request = read_metadata(HOME / "sheet.png")["request"]
    again = engine().draw(engine().request(**request))
    assert again.shape == (60, 1, 28, 28)
    assert bool(torch.isfinite(again).all())
    assert engine().provenance["objective"]["loss"] == "beta"
    assert engine().settings.temperature == stated()["temperature"]


def test_digits_are_those_asked_for() -> None:
    """By a classifier that has seen no digit of this model: at the default temperature, and with the prior itself."""
    asked = np.arange(vae_mnist.COUNT) % vae_mnist.CLASSES
    for temperature, name in ((None, "drawn"), (1.0, "drawn_from_the_prior")):
        found = engine().sample(
            len(asked), labels=asked.tolist(), seed=0, temperature=temperature, output_type="np"
        )
        agreement = (judge.predict(np.asarray(found)[..., 0].astype(np.float64)) == asked).mean()
        assert agreement > 0.9
        assert agreement == pytest.approx(stated()[name]["agreement"], abs=0.03)  # another classifier


@pytest.mark.real
def test_bits_per_dimension_of_unseen_digits() -> None:
    """One draw, as the README's command: the same seeds give the same number."""
    found = vae_mnist.bits(engine(), vae_mnist.HELD_OUT, 1)
    assert found["kind"] == "bound"
    assert found["bits_per_dim"] == pytest.approx(stated()["held_out"]["bits_per_dim"], abs=REPEATED)
    assert found["bits_per_dim"] < 1.65


@pytest.mark.slow
@pytest.mark.real
def test_all_that_the_readme_states() -> None:
    report, expected = vae_mnist.measure(), stated()
    print(json.dumps(report, indent=2))
    for name in ("held_out", "held_out_importance_weighted", "trained_on"):
        wanted = pytest.approx(expected[name]["bits_per_dim"], abs=REPEATED)
        assert report[name]["bits_per_dim"] == wanted, name
    assert report["held_out_importance_weighted"]["bits_per_dim"] < report["held_out"]["bits_per_dim"]
    assert report["latents"]["collapsed"] == expected["latents"]["collapsed"]
    assert report["latents"]["nats"] == pytest.approx(expected["latents"]["nats"], rel=1e-3)
    assert report["reconstruction"] == pytest.approx(expected["reconstruction"], abs=1e-3)
    for part in ("drawn", "drawn_from_the_prior"):
        for name, value in report[part].items():
            assert value == pytest.approx(expected[part][name], abs=0.01), (part, name)
