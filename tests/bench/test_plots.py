"""Plots: every kernel case has its place in the roofline, every contestant its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from fastgen.bench import plots
from fastgen.bench.results import Results, Row
from fastgen.bench.timing import Timing
from fastgen.errors import ConfigError


def results() -> Results:
    rows = [
        Row(
            "kernels",
            name,
            f"c{i}",
            "float32",
            0.1,
            Timing.of([1e-3 * (i + 1)] * 3),
            bytes=1000,
            flops=500 * (i + 1),
        )
        for name in ("adain", "group_norm")
        for i in range(3)
    ]
    rows.append(Row("kernels", "wrong", "c", "float32", 3.0, bytes=10, flops=10))
    for batch in (1, 4, 16):
        times = {"eager": Timing.of([0.2 * batch] * 3)}
        own = Timing.of([0.1 * batch, 0.12 * batch, 0.11 * batch])
        rows.append(
            Row(
                "families",
                "m",
                f"sample {batch}, ddim 5",
                "float32",
                0.1,
                own,
                times,
                batch=batch,
                images=batch,
            )
        )
    here = {"device": "d", "threads": 1, "torch": "2"}
    return Results(here, rows, {"copy": 1e9, "float32": 1e10})


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    save = plots._save

    def keep(figure: Any, title: str, found: Results, path: Path) -> Path:
        kept[path.name] = figure
        return save(figure, title, found, path)

    monkeypatch.setattr(plots, "_save", keep)
    return kept


def test_every_kernel_case_is_placed(tmp_path: Path, figures: dict[str, Any]) -> None:
    written = plots.write(results(), tmp_path)
    assert [path.name for path in written] == ["batch.png", "roofline.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    (axis,) = figures["roofline.png"].axes
    placed = [tuple(point) for group in axis.collections for point in group.get_offsets()]
    assert len(placed) == 6
    assert placed[0] == pytest.approx((0.5, 500 / 1e-3))
    low, high = axis.get_xlim()
    bottom, top = axis.get_ylim()
    assert all(low < x < high and bottom < y < top for x, y in placed)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["adain (3)", "group_norm (3)"]


def test_every_contestant_has_a_line(tmp_path: Path, figures: dict[str, Any]) -> None:
    plots.write(results(), tmp_path)
    left, right = figures["batch.png"].axes
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["fastgen", "eager"]
    own, eager = (container.lines[0].get_ydata() for container in left.containers)
    assert list(own) == pytest.approx([110, 440, 1760])
    assert list(eager) == pytest.approx([200, 800, 3200])
    assert list(right.containers[0].lines[0].get_ydata()) == pytest.approx([1 / 0.11] * 3)


def test_without_matplotlib_it_says_so_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        plots.check(tmp_path)
    assert error.value.argument == "--plot"


def test_without_rows_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert plots.write(Results({}), tmp_path) == []
