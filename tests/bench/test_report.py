"""docs/benchmarks.md is what the recorded results say."""

from __future__ import annotations

from bench import report
from fastgen.bench import tables


def test_the_page_is_up_to_date() -> None:
    results = report.recorded()
    assert results
    _, mark, made = report.PAGE.read_text(encoding="utf-8").partition(report.MARK)
    assert mark
    assert made == report.page(results), "run python -m bench.report"


def test_the_plots_it_shows_are_there() -> None:
    for name, found in report.recorded().items():
        shown = {"kernels": "roofline.png", "families": "batch.png"}
        for suite in {row.suite for row in found.rows if row.seconds} & shown.keys():
            assert (report.PLOTS / name / shown[suite]).read_bytes().startswith(b"\x89PNG")


def test_every_recorded_result_is_right() -> None:
    for found in report.recorded().values():
        assert [row.key for row in found.rows if row.wrong] == []
        assert {row.suite for row in found.rows} <= tables.COLUMNS.keys()
