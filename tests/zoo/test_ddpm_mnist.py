"""The digits of zoo:ddpm-mnist, judged by a classifier trained on real ones. Its README states these numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fastgen
from fastgen.zoo import folder
from tests import real
from tests.zoo import quality

TRAINING = slice(0, 9000)  # what the model saw
HELD_OUT = slice(9000, 10000)
COUNT, GUIDANCE = 1000, 1.5


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = real.mnist()
    return images / 255.0, labels


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(COUNT) % 10
    engine = fastgen.load("zoo:ddpm-mnist")
    images = engine.sample(
        COUNT,
        labels=labels.tolist(),
        seed=0,
        solver="dpm++2m",
        steps=20,
        guidance_scale=GUIDANCE,
        output_type="np",
    )
    return images[..., 0].astype(np.float64), labels


@pytest.mark.slow
@pytest.mark.real
def test_agreement_variety_and_novelty(digits: tuple, drawn: tuple) -> None:
    report = measure(digits, drawn)
    print(json.dumps(report, indent=2))
    assert report["classifier_on_held_out"] >= 0.97
    assert report["agreement"] >= 0.98
    assert abs(report["variety"] - 1) <= 0.15
    # Not copied: no quantile of the distance to the training set lies below that of unseen real digits by more
    # than half, and nothing is as close as a copy would be.
    assert report["closest"] > 0.5 * report["closest_held_out"]
    stated = json.loads((folder("ddpm-mnist") / "quality.json").read_text())
    for name in ("agreement", "variety"):
        assert report[name] == pytest.approx(stated[name], abs=0.01), name


def measure(digits: tuple, drawn: tuple) -> dict:
    """The numbers of the zoo's README."""
    (images, labels), (samples, asked) = digits, drawn
    judge = quality.classifier(images[TRAINING], labels[TRAINING])
    real_spread = quality.spread(images[HELD_OUT], labels[HELD_OUT])
    drawn_spread = quality.spread(samples, asked)
    near = quality.nearest(samples, images[TRAINING])
    near_held_out = quality.nearest(images[HELD_OUT], images[TRAINING])
    return {
        "samples": COUNT,
        "guidance_scale": GUIDANCE,
        "classifier_on_held_out": float(
            (judge.predict(quality.features(images[HELD_OUT])) == labels[HELD_OUT]).mean()
        ),
        "agreement": float((judge.predict(quality.features(samples)) == asked).mean()),
        "variety": float(
            np.mean([drawn_spread[i] for i in range(10)]) / np.mean([real_spread[i] for i in range(10)])
        ),
        "variety_by_label": {str(i): round(drawn_spread[i] / real_spread[i], 3) for i in range(10)},
        "nearest_training_digit": _quantiles(near),
        "nearest_training_digit_held_out": _quantiles(near_held_out),
        "closest": round(float(near.min()), 3),
        "closest_held_out": round(float(near_held_out.min()), 3),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {str(q): round(float(np.quantile(values, q)), 3) for q in quality.QUANTILES}


def test_sheet_in_the_readme_was_drawn_by_these_weights() -> None:
    from fastgen.images import read_metadata

    home = Path(folder("ddpm-mnist"))
    spec = json.loads((home / "config.json").read_text())
    assert read_metadata(home / "sheet.png")["sha256"] == spec["provenance"]["sha256"]
