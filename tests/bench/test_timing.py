"""The method: turns, repeats, medians. No test asserts how fast this machine is."""

from __future__ import annotations

import statistics
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


def test_summary() -> None:
    found = timing.summary([3.0, 1.0, 2.0, 5.0, 4.0], 7)
    assert (found.low, found.median, found.high, found.calls) == (2.0, 3.0, 4.0, 7)
    assert found.median == statistics.median([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="rounds: expected at least 3"):
        timing.interleaved({"a": lambda: None}, CPU, rounds=2)


def test_the_real_clock_agrees_with_sleep() -> None:
    found = timing.interleaved({"sleep": lambda: time.sleep(0.002)}, CPU, rounds=3, sample_seconds=0.004)
    assert found["sleep"].low >= 0.002
