"""A contest: what is wrong gets no speed, what cannot run is named, the others are timed."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from fastgen.bench import contest
from fastgen.bench.contest import Contest, How, NotApplicable
from fastgen.bench.results import Row
from fastgen.errors import CaptureError

CPU = torch.device("cpu")
ROW = Row("kernels", "op", "case", "float32", float("nan"), images=2, bytes=100, flops=50)


def made(**changes: object) -> Contest:
    """fastgen gives 1.0, which is right; so does the rival."""
    values: dict = {
        "row": ROW,
        "own": lambda: torch.ones(1),
        "judge": lambda value: abs(value.item() - 1.0),
        "device": CPU,
        "rivals": {"eager": lambda: lambda: torch.ones(1)},
    }
    return Contest(**{**values, **changes})


def run(case: Contest) -> tuple[Row, list[str]]:
    said: list[str] = []
    return case.run(How(rounds=3, say=said.append)), said


def test_right_results_are_timed() -> None:
    row, said = run(made())
    assert row.error == 0
    assert row.errors == {"eager": 0.0}
    assert row.seconds is not None
    assert row.images_per_second == 2 / row.seconds.median
    assert row.gb_per_second == pytest.approx(100 / row.seconds.median / 1e9)
    assert row.ratio("eager").median > 0
    assert said == []


@pytest.mark.parametrize("value", [2.5, float("nan"), float("inf")])
def test_a_wrong_result_gets_no_speed(value: float) -> None:
    timed = []

    def rival() -> torch.Tensor:
        timed.append(1)
        return torch.ones(1)

    row, _ = run(made(own=lambda: torch.full((1,), value), rivals={"eager": lambda: rival}))
    assert row.wrong
    assert row.seconds is None
    assert not row.rivals
    assert timed == []
    assert row.notes == ("wrong: nothing is timed",)


def test_what_is_judged_may_be_another_form_of_the_call() -> None:
    row, _ = run(made(own=lambda: None, result=lambda: torch.ones(1)))
    assert row.error == 0
    assert row.seconds is not None


def test_a_rival_that_differs_is_not_timed() -> None:
    row, said = run(made(rivals={"other": lambda: lambda: torch.full((1,), 3.0)}))
    assert row.seconds is not None
    assert "other" not in row.rivals
    assert row.errors == {"other": 2.0}
    assert said == ["op case float32: other is left out: its result differs (2 of the bound)"]
    row, _ = run(made(rivals={"other": lambda: lambda: torch.full((1,), 3.0)}, agrees=lambda value: 0.5))
    assert "other" in row.rivals


def test_a_rival_that_cannot_run_is_named() -> None:
    def breaks() -> contest.Call:
        raise RuntimeError("no such backend\nlong story")

    def has_none() -> contest.Call:
        raise NotApplicable("it has no flows")

    row, said = run(made(rivals={"a": breaks, "b": has_none, "eager": lambda: lambda: torch.ones(1)}))
    assert list(row.rivals) == ["eager"]
    assert said == [
        "op case float32: a is left out: RuntimeError: no such backend",
        "op case float32: b is left out: it has no flows",
    ]
    assert row.notes == ("a: RuntimeError: no such backend", "b: it has no flows")


def test_calls_that_cannot_be_captured_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """fastgen's is timed as it is, and says so; a rival's is left out."""

    def refuse(call: contest.Call, device: torch.device, repeats: int) -> contest.Call:
        raise CaptureError("it waits for the device")

    monkeypatch.setattr(contest, "captured", refuse)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    said: list[str] = []
    calls = {"fastgen": lambda: 1, "eager": lambda: 2, "compile": lambda: 3}
    graphs, repeats, row = made(captured=True)._as_graphs(calls, ROW, How(say=said.append))
    assert list(graphs) == ["fastgen", contest.LAUNCHED]
    assert repeats == {}
    assert graphs[contest.LAUNCHED] is calls["eager"]
    assert row.notes[0] == "fastgen is timed uncaptured, launch by launch"
    assert any("fastgen is timed uncaptured" in line for line in said)
    assert any("compile is left out: it cannot be captured" in line for line in said)


@pytest.mark.parametrize(("seconds", "repeats"), [(10e-6, 32), (5e-3, 1)])
def test_a_graph_repeats_a_short_call(monkeypatch: pytest.MonkeyPatch, seconds: float, repeats: int) -> None:
    """So that its time is not that of a graph's launch; the uncaptured formula is called as it is."""
    from fastgen.bench import timing

    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    launch = 4e-6

    def call() -> None:
        now[0] += seconds

    def captured(call: contest.Call, device: torch.device, repeats: int) -> contest.Call:
        def replay() -> None:
            now[0] += launch
            for _ in range(repeats):
                call()

        return replay

    monkeypatch.setattr(contest, "captured", captured)
    calls = {"fastgen": call, "eager": call}
    graphs, found, _ = made(captured=True)._as_graphs(calls, ROW, How(say=lambda words: None))
    assert found == {"fastgen": repeats, "eager": repeats}
    times = timing.interleaved(graphs, CPU, rounds=3, repeats=found)
    assert times["fastgen"].median == pytest.approx(seconds + launch / repeats)
    assert times[contest.LAUNCHED].median == pytest.approx(seconds)


def test_the_fastest_of_some_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen.bench import timing

    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = {
        name: lambda seconds=seconds: now.__setitem__(0, now[0] + seconds)
        for name, seconds in {"slow": 3.0, "quick": 1.0, "middle": 2.0}.items()
    }
    assert contest.fastest(calls, CPU) is calls["quick"]


@pytest.mark.gpu
def test_capture_and_peak_memory() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.randn(1 << 20, device=device)
    graph = contest.captured(lambda: x * 2, device)
    graph()
    total = torch.zeros((), device=device)
    graph = contest.captured(lambda: total.add_(1), device, 32)
    total.zero_()
    graph()
    assert total.item() == 32
    with pytest.raises(CaptureError, match="graph=False"):
        contest.captured(lambda: x.sum().item(), device)
    assert contest.peak(lambda: x * 2, device) >= x.numel() * 4
    row, _ = run(replace(made(captured=True), device=device))
    assert {"eager", contest.LAUNCHED} <= row.rivals.keys()
    assert row.peak_bytes.keys() == {"fastgen", "eager"}
