"""Fresh processes: in turns, judged, their phases and memory; one real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastgen
from fastgen.bench import diffusion, families, fresh, verbs
from fastgen.bench.contest import How
from fastgen.bench.results import Row
from tests.small import checkpoint

ROW = Row("fresh", "m", "c", "float32", float("nan"))


def starter(order_seen: list[str], images: dict[str, float] | None = None):  # type: ignore[no-untyped-def]
    def start(order: dict[str, Any]) -> dict[str, Any]:
        who = order["who"]
        order_seen.append(who)
        if who == "broken":
            raise RuntimeError("ImportError: no such thing")
        scale = 1.0 if who == "fastgen" else 2.0
        marks = {phase: scale * (i + 1) for i, phase in enumerate(fresh.PHASES)}
        value = (images or {}).get(who, 0.0)
        cpu = {phase: at / 2 for phase, at in marks.items()}
        return {"wall": marks, "cpu": cpu, "peak_bytes": int(scale * 100), "result": torch.full((1,), value)}

    return start


def test_processes_take_turns_and_report() -> None:
    seen: list[str] = []
    how = How(rounds=3, say=lambda words: None)
    row = fresh.measure(ROW, lambda x: x.item(), {"fastgen": {}, "other": {}}, how, starter(seen))
    assert seen == ["fastgen", "other", "other", "fastgen", "fastgen", "other"]
    assert row.seconds.median == 3.0  # the end of the third phase, the first image
    assert row.ratio("other").median == 2.0
    assert row.phases["fastgen"] == dict.fromkeys(fresh.PHASES, 1.0)
    assert row.peak_bytes == {"fastgen": 100, "other": 200}
    cpu = fresh.measure(ROW, lambda x: 0.0, {"fastgen": {}}, How(rounds=3, clock="cpu"), starter([]))
    assert cpu.seconds.median == 1.5


def test_importing_pytorch_alone_is_timed_in_every_round() -> None:
    def start(order: dict[str, Any]) -> dict[str, Any]:
        if order["who"] == fresh.FLOOR:
            return {"wall": {"imports": 2.0}, "cpu": {"imports": 0.5}}
        return starter([])(order)

    row = fresh.measure(ROW, lambda x: 0.0, {"fastgen": {}}, How(rounds=3), start, floor=True)
    assert row.notes == ("1.50 (1.50 - 1.50) times as long as import torch alone, 2.00 s",)
    assert set(row.phases) == {"fastgen"}


def test_a_real_process_that_imports_pytorch() -> None:
    report = fresh.run_child({"who": fresh.FLOOR})
    assert report["cpu"]["imports"] > 0
    assert report["wall"]["imports"] > 0


def test_wrong_images_get_no_time() -> None:
    said: list[str] = []
    how, orders = How(rounds=1, say=said.append), {"fastgen": {}, "other": {}}
    row = fresh.measure(ROW, lambda x: x.item(), orders, how, starter([], {"fastgen": 2.0}))
    assert row.wrong
    assert row.seconds is None
    row = fresh.measure(ROW, lambda x: x.item(), orders, how, starter([], {"other": 2.0}))
    assert row.seconds is not None
    assert not row.baselines
    assert said == ["m: other is left out: its result differs (2 of the bound)"]


def test_a_baseline_that_fails_is_named() -> None:
    said: list[str] = []
    how, orders = How(rounds=3, say=said.append), {"fastgen": {}, "broken": {}}
    row = fresh.measure(ROW, lambda x: 0.0, orders, how, starter([]))
    assert row.seconds is not None
    assert said == ["m: broken is left out: ImportError: no such thing"]


def test_no_round_begins_after_the_time_is_over() -> None:
    row = fresh.measure(ROW, lambda x: 0.0, {"fastgen": {}}, How(rounds=5, seconds=0.0), starter([]))
    assert len(row.seconds.samples) == 1


def test_a_real_process(tmp_path: Path) -> None:
    """Draws what the engine draws, holds memory, and goes through its phases one after the other."""
    engine = fastgen.load(checkpoint(tmp_path / "model"), device="cpu")
    common = {"device": "cpu", "dtype": "float32", "folder": str(tmp_path / "model"), "who": "fastgen"}
    _, orders = diffusion.fresh(engine, "m", tmp_path, 2, 3, ())
    order = orders["fastgen"]
    report = fresh.run_child({**common, **order})
    assert torch.allclose(report["result"], engine.sample(**order["arguments"]), atol=1e-5)
    marks = [report["wall"][phase] for phase in fresh.PHASES]
    assert marks == sorted(marks)
    assert 50 << 20 < report["peak_bytes"] < 4 << 30  # the whole process, PyTorch's libraries included
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):  # what a child that fails said last
        fresh.run_child({**common, **order, "who": "nobody"})


def test_a_real_process_of_an_engine_with_verbs(tmp_path: Path) -> None:
    engine = fastgen.load(families.on_disk("random:vector_flow", tmp_path), device="cpu")
    contest, orders = verbs.fresh(engine, "m", tmp_path, 2, None, ())
    common = {"device": "cpu", "dtype": "float32", "folder": engine.source, "who": "fastgen"}
    report = fresh.run_child({**common, **orders["fastgen"]})
    assert contest.row.case == "sample 2"
    assert contest.judge(report["result"]) <= 1


@pytest.mark.slow
def test_diffusers_draws_the_same_in_its_own_process(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    engine = fastgen.load(checkpoint(tmp_path / "model"), device="cpu")
    _, orders = diffusion.fresh(engine, "m", tmp_path, 2, 3, ["diffusers"])
    report = fresh.run_child({"device": "cpu", "dtype": "float32", "who": "diffusers", **orders["diffusers"]})
    own = engine.sample(**orders["fastgen"]["arguments"])
    assert torch.allclose(report["result"], own, atol=1e-4)
