"""The digits of zoo:ddpm-mnist, judged by a classifier trained on real ones. Its README states these numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastgen
from fastgen.zoo import folder
from tests import real
from tests.zoo import likelihood, quality


@pytest.mark.slow
@pytest.mark.real
def test_agreement_variety_and_novelty() -> None:
    report = quality.measure(*real.mnist())
    print(json.dumps(report, indent=2))
    assert report["classifier_on_held_out"] >= 0.97
    assert report["agreement"] >= 0.98
    assert abs(report["variety"] - 1) <= 0.15
    # Not copied: the closest drawn digits are no closer to the training set than the closest unseen real ones, and
    # the middle of the distribution is where theirs is (5 % is what a median of 1,000 varies by).
    real_distance = report["nearest_training_digit_of_held_out"]
    for quantile, distance in report["nearest_training_digit"].items():
        assert distance >= real_distance[quantile] * (1.0 if float(quantile) <= 0.1 else 0.95), quantile
    stated = json.loads((folder("ddpm-mnist") / "quality.json").read_text())
    for name in ("agreement", "variety"):
        assert report[name] == pytest.approx(stated[name], abs=0.01), name


def test_sheet_in_the_readme_was_drawn_by_these_weights() -> None:
    from fastgen.images import read_metadata

    home = Path(folder("ddpm-mnist"))
    spec = json.loads((home / "config.json").read_text())
    assert read_metadata(home / "sheet.png")["sha256"] == spec["provenance"]["sha256"]


def test_a_image_does_not_depend_on_its_batch() -> None:
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu")
    call = {"seed": 7, "steps": 4, "solver": "ddpm", "guidance_scale": 1.5}
    labels = [k % 10 for k in range(64)]
    together = engine.sample(64, labels=labels, **call)
    for count in (1, 3):
        alone = engine.sample(count, labels=labels[:count], **call)
        # float error of four network evaluations; libraries choose other algorithms for other batches
        torch.testing.assert_close(alone, together[:count], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.real
def test_likelihood_of_unseen_digits() -> None:
    """What the README states of the first digits, anew; and the order of the numbers in what it states of all."""
    stated = json.loads((folder("ddpm-mnist") / "likelihood.json").read_text())
    images, labels = real.mnist()
    some = slice(likelihood.FIRST, likelihood.FIRST + 2)
    x, given = torch.tensor(images[some])[:, None], labels[some].tolist()
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu")
    for part in ("bound", "decoder"):
        found = engine.bits_per_dim(x, labels=given, **likelihood.PARTS[part])  # type: ignore[union-attr]
        assert found.kind == stated[part]["kind"]
        assert found.values.tolist() == pytest.approx(
            stated[part]["values"][:2], abs=2e-3
        )  # noise is the seed's
    bound, flow = (torch.tensor(stated[part]["values"]) for part in ("bound", "decoder"))
    apart = bound - flow
    assert float(apart.mean()) > -float(apart.std()) / len(apart) ** 0.5
