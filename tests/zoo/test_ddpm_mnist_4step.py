"""The digits of zoo:ddpm-mnist-4step, drawn in 4 steps, judged as its teacher's are. Its page states the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastgen
from fastgen.zoo import folder
from tests import real
from tests.zoo import ddpm_mnist_4step as student


def test_the_defaults_are_four_evaluations() -> None:
    engine = fastgen.load(student.STUDENT, device="cpu")
    settings = engine.settings
    assert (settings.solver, settings.steps, settings.guidance_scale) == ("ddim", 4, 1.0)
    seen: list[int] = []
    engine.sample(labels=3, seed=0, callback=lambda step, total, images: seen.append(total))
    assert seen == [4] * 4


def test_sheet_in_the_readme_was_drawn_by_these_weights() -> None:
    from fastgen.images import read_metadata

    home = Path(folder(student.NAME))
    spec = json.loads((home / "config.json").read_text())
    assert read_metadata(home / "sheet.png")["sha256"] == spec["provenance"]["sha256"]


def test_its_teacher_is_the_one_of_the_zoo() -> None:
    spec = json.loads((folder(student.NAME) / "config.json").read_text())
    teacher = json.loads((folder("ddpm-mnist") / "config.json").read_text())
    assert spec["provenance"]["teacher"] == {
        "name": student.TEACHER,
        "sha256": teacher["provenance"]["sha256"],
    }
    assert spec["parts"] == teacher["parts"]


@pytest.mark.slow
@pytest.mark.real
def test_agreement_variety_and_novelty() -> None:
    report = student.measure(*real.mnist())
    assert report["classifier_on_held_out"] >= 0.97
    assert report["judge"] >= 0.97
    assert report["agreement"] >= 0.97
    assert abs(report["variety"] - 1) <= 0.15  # the zoo's limit
    real_distance = report["nearest_training_digit_of_held_out"]
    for quantile, distance in report["nearest_training_digit"].items():
        assert distance >= real_distance[quantile] * (1.0 if float(quantile) <= 0.1 else 0.95), quantile
    stated = json.loads((folder(student.NAME) / "quality.json").read_text())
    for name in ("agreement", "judge", "variety"):
        assert report[name] == pytest.approx(stated[name], abs=0.01), name
