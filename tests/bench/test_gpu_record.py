"""What becomes of the items of a run on a GPU: results that are kept, and their page."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import gpu_record
from fastgen.bench.results import Results, Row
from fastgen.bench.timing import Timing

ROW = Row("kernels", "reverse_step", "lsun64", "bfloat16", 0.5, Timing.of([1e-4] * 3), bytes=10)
ITEMS = [
    {
        "kind": "environment",
        "name": "environment",
        "values": {"device": "NVIDIA H100 80GB HBM3"},
        "dry": False,
    },
    {"kind": "ceiling", "name": "copy", "value": 3e12},
    {"kind": "row", "name": "r", "row": ROW.to_dict()},
    {"kind": "skipped", "name": "lsun16", "reason": "no time left"},
    {"kind": "fact", "name": "collected tests", "count": 3},
    {"kind": "test", "name": "t::a", "outcome": "passed"},
    {"kind": "test", "name": "t::b", "outcome": "failed", "error": "AssertionError: 2 > 1"},
    {"kind": "stage", "stage": "probes", "name": "probes", "outcome": "out of time", "seconds": 20.0},
    {
        "kind": "probe",
        "stage": "probes",
        "name": "chain",
        "us_per_node": {"plain": {"us": 1.2, "low": 1.1, "high": 1.3}},
    },
    {
        "kind": "old_new",
        "stage": "old_new",
        "name": "adain vgg16",
        "outcome": "passed",
        "old_over_new": [1.0, 1.1, 1.2],
        "seconds": {"old": [1e-4] * 3, "new": [1e-4] * 3},
    },
    {
        "kind": "step_kernels",
        "stage": "networks",
        "name": "cifar10",
        "kernels": 5,
        "microseconds": 9,
        "rows": [["k", 5, 9]],
    },
]


def test_a_run_becomes_results(tmp_path: Path) -> None:
    found = gpu_record.record(ITEMS)
    assert gpu_record.device_name(found) == "h100-80gb-hbm3"
    assert found.ceilings == {"copy": 3e12}
    assert found.left_out == {"lsun16": "no time left", "the rest of stage probes": "out of time"}
    assert found.evidence["tests"]["counts"] == {"passed": 1, "failed": 1}
    path = tmp_path / "h100.json"
    found.write(path)
    again = Results.read(path)
    assert again.rows == [ROW]
    assert again.evidence == found.evidence
    page = gpu_record.page(again.evidence)
    for words in (
        "Of 3: 1 failed, 1 passed",
        "`t::b`",
        "| chain | plain | 1.2 (1.1 - 1.3) |",
        "| `k` | 5 | 9 |",
        "1.10 (1.00",
    ):
        assert words in page


def test_a_second_run_corrects_the_first() -> None:
    mended = {"kind": "test", "name": "t::b", "outcome": "passed"}
    quicker = {"kind": "row", "name": "r", "row": {**ROW.to_dict(), "error": 0.25}}
    failure = {"kind": "failure", "stage": "smoke", "name": "adain", "error": "illegal access"}
    other = {"kind": "failure", "stage": "smoke", "name": "group_norm", "error": "illegal access"}
    check = {"kind": "check", "stage": "smoke", "name": "adain", "outcome": "failed"}
    attempt = {"kind": "attempt", "stage": "smoke", "name": "adain"}
    stages = {"kind": "stage", "stage": "probes", "name": "probes", "outcome": "done", "seconds": 9.0}
    measured = {"kind": "row", "name": "lsun16", "row": {**ROW.to_dict(), "case": "lsun16"}}
    second = [ITEMS[0], mended, quicker, stages, measured, {**check, "outcome": "passed"}, attempt]
    found = gpu_record.record([*ITEMS, failure, other, check, *second])
    assert [item["name"] for item in found.evidence["failure"]] == ["group_norm"]
    assert [item["outcome"] for item in found.evidence["check"]] == ["passed"]
    assert found.evidence["tests"] == {"collected": 3, "counts": {"passed": 2}, "failed": {}}
    assert [row.error for row in found.rows] == [0.25, 0.5]
    assert found.left_out == {}


@pytest.mark.parametrize(
    "items",
    [
        ITEMS[1:],
        [{**ITEMS[0], "dry": True}],
        [ITEMS[0], {**ITEMS[0], "values": {"device": "NVIDIA H200"}}],
    ],
    ids=["ended at once", "dry", "two devices"],
)
def test_what_is_no_run_on_a_gpu_is_not_recorded(items: list[dict]) -> None:
    with pytest.raises(ValueError, match="run"):
        gpu_record.record(items)
