"""The digits of zoo:ddpm-mnist, judged by a classifier trained on real ones. Its README states these numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgen.zoo import folder
from tests import real
from tests.zoo import quality


@pytest.mark.slow
@pytest.mark.real
def test_agreement_variety_and_novelty() -> None:
    report = quality.measure(*real.mnist())
    print(json.dumps(report, indent=2))
    assert report["classifier_on_held_out"] >= 0.97
    assert report["agreement"] >= 0.98
    assert abs(report["variety"] - 1) <= 0.15
    for quantile, distance in report["nearest_training_digit"].items():
        assert distance >= 0.8 * report["nearest_training_digit_of_held_out"][quantile], quantile
    stated = json.loads((folder("ddpm-mnist") / "quality.json").read_text())
    for name in ("agreement", "variety"):
        assert report[name] == pytest.approx(stated[name], abs=0.01), name


def test_sheet_in_the_readme_was_drawn_by_these_weights() -> None:
    from fastgen.images import read_metadata

    home = Path(folder("ddpm-mnist"))
    spec = json.loads((home / "config.json").read_text())
    assert read_metadata(home / "sheet.png")["sha256"] == spec["provenance"]["sha256"]
