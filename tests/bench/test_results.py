"""Results go to a file and come back; the file is one of ours, or refused in words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fastgen.bench.results import Results, Row
from fastgen.bench.timing import Timing
from fastgen.errors import ConfigError
from tests.refusals import refused


def results() -> Results:
    own, rival = Timing.of([1.0, 2.0, 3.0], 5), Timing.of([2.0, 4.0, 6.0])
    rows = [
        Row("kernels", "op", "a", "float32", 0.5, own, {"eager": rival}, {"eager": 0.1}, bytes=10, flops=20),
        Row("kernels", "op", "b", "float32", float("nan"), notes=("wrong: nothing is timed",)),
        Row(
            "fresh",
            "m",
            "c",
            "float32",
            0.1,
            own,
            phases={"fastgen": {"imports": 1.0}},
            peak_bytes={"fastgen": 3},
        ),
    ]
    return Results({"device": "d", "threads": 1, "features": "avx2"}, rows, {"copy": 1e9}, {"compile": "no"})


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results().write(path)
    found = Results.read(path)
    assert found.rows[0] == results().rows[0]
    assert found.rows[2] == results().rows[2]
    assert found.rows[1].wrong
    assert found.rows[1].error == float(
        "inf"
    )  # JSON has no NaN; null stands for what is not a bound's fraction
    assert dataclasses.replace(found, rows=[]) == dataclasses.replace(results(), rows=[])
    values = json.loads(path.read_text())
    assert values["rows"][0]["ratios"] == {"eager": 2.0}
    found.write(path)
    assert Results.read(path).rows == found.rows


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("{", []),
        ('{"kernels": []}', [2, None]),
        ("[1]", [2, None]),
        ('{"format": 2}', []),
        (
            '{"format": 2, "environment": {}, "ceilings": {}, "left_out": {}, "rows": [{"suite": 1}]}',
            [],
        ),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, mentions: list) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with refused(ConfigError, path, *mentions):
        Results.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with refused(ConfigError, tmp_path / "none.json"):
        Results.read(tmp_path / "none.json")
