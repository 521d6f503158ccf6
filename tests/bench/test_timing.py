"""The method: turns, repeats, medians. No test asserts how fast this machine is."""

from __future__ import annotations

import time

import pytest
import torch

from fastgen.bench import timing

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves only when a call says so: times are exact."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_times_are_those_of_the_calls(clock: list[float]) -> None:
    def takes(seconds: float):  # type: ignore[no-untyped-def]
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    found = timing.interleaved({"a": takes(0.001), "b": takes(0.003)}, CPU, sample_seconds=0.03)
    assert found["a"].median == pytest.approx(0.001)
    assert found["b"].median == pytest.approx(0.003)
    assert (found["a"].calls, found["b"].calls) == (30, 10)
    assert found["b"].low == pytest.approx(found["b"].high)


def test_a_call_may_do_its_work_several_times(clock: list[float]) -> None:
    def call() -> None:
        clock[0] += 0.004

    found = timing.interleaved({"a": call, "b": call}, CPU, sample_seconds=0.04, repeats={"a": 8})
    assert found["a"].median == pytest.approx(0.0005)
    assert found["a"].calls == 80
    assert found["b"].median == pytest.approx(0.004)


def test_rivals_take_turns_in_both_orders(clock: list[float]) -> None:
    order: list[str] = []

    def named(name: str):  # type: ignore[no-untyped-def]
        def call() -> None:
            order.append(name)
            clock[0] += 1.0

        return call

    timing.interleaved({"a": named("a"), "b": named("b")}, CPU, rounds=4, sample_seconds=0.1)
    assert "".join(order[-8:]) == "abbaabba"


def test_a_slow_machine_moves_the_median_of_all(clock: list[float]) -> None:
    """A slowdown in some turns falls on both rivals, and the quartiles show it."""
    turns = [0]

    def call() -> None:
        turns[0] += 1
        clock[0] += 5.0 if turns[0] % 9 == 0 else 1.0

    found = timing.interleaved({"a": call}, CPU, rounds=9, sample_seconds=0.1)["a"]
    assert found.median == 1.0


def test_quartiles() -> None:
    found = timing.Timing.of([3.0, 1.0, 2.0, 5.0, 4.0], 7)
    assert (found.low, found.median, found.high, found.calls) == (2.0, 3.0, 4.0, 7)
    assert found.samples == (3.0, 1.0, 2.0, 5.0, 4.0)
    two = timing.Timing.of([2.0, 1.0])
    assert (two.low, two.median, two.high) == (1.0, 1.5, 2.0)


@pytest.mark.parametrize(("wrong", "message"), [({"rounds": 2}, "rounds: "), ({"clock": "sun"}, "clock: ")])
def test_wrong_arguments(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timing.interleaved({"a": lambda: None}, CPU, **wrong)


def test_a_ratio_is_taken_round_by_round() -> None:
    """Both are three times as slow in one round: the ratio does not see it, the medians' quotient may."""
    own, rival = timing.Timing.of([1.0, 3.0, 1.0]), timing.Timing.of([2.0, 6.0, 2.0])
    assert (rival.over(own).low, rival.over(own).median, rival.over(own).high) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="rounds: "):
        own.over(timing.Timing.of([1.0]))


def test_no_round_begins_after_the_time_is_over(clock: list[float]) -> None:
    calls = {"a": lambda: clock.__setitem__(0, clock[0] + 1.0)}
    assert len(timing.interleaved(calls, CPU, rounds=9, seconds=0.5)["a"].samples) == timing.LEAST_ROUNDS
    assert len(timing.interleaved(calls, CPU, rounds=9, seconds=5.5)["a"].samples) == 5


def test_processor_time_leaves_waiting_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "process_time", lambda: now[0])
    found = timing.interleaved({"a": lambda: now.__setitem__(0, now[0] + 0.5)}, CPU, rounds=3, clock="cpu")
    assert found["a"].median == 0.5


def test_the_real_clock_agrees_with_sleep() -> None:
    found = timing.interleaved({"sleep": lambda: time.sleep(0.002)}, CPU, rounds=3, sample_seconds=0.004)
    assert found["sleep"].low >= 0.002
