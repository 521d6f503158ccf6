"""How a time is taken: calls in turns in one process, the order turned around every round; medians with quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError

Call = Callable[[], Any]

CLOCKS = {"wall": "perf_counter", "cpu": "process_time"}
WARM_UP_SECONDS = 0.05
MAX_CALLS = 10_000
LEAST_ROUNDS = 3  # for quartiles


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles over the rounds, how many calls a round had, and each round's mean."""

    median: float
    low: float
    high: float
    calls: int
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float], calls: int = 1) -> Timing:
        """Of one sample or more, in seconds per call. With fewer than three, the range stands for the quartiles."""
        low, high = min(samples), max(samples)
        if len(samples) >= LEAST_ROUNDS:
            low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(statistics.median(samples), low, high, calls, tuple(samples))

    def over(self, other: Timing) -> Timing:
        """This time divided by `other`'s, round by round: what slows both in a round cancels. `calls` is 1."""
        if len(self.samples) != len(other.samples):
            raise ConfigError(
                f"expected {len(other.samples)} as in the other timing, got {len(self.samples)}",
                argument="rounds",
            )
        return Timing.of([mine / its for mine, its in zip(self.samples, other.samples, strict=True)])


def interleaved(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    rounds: int = 9,
    sample_seconds: float = 0.02,
    clock: str = "wall",
    seconds: float = float("inf"),
    repeats: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """Time every one of `calls` in turns, without gradients.

    rounds: how many turns each gets, at least 3. sample_seconds: how long a turn should take; short calls are repeated.
    clock: a key of CLOCKS; "cpu" counts the seconds that this process had the processor, for machines that others use
    too. On CUDA a turn is timed by events on the current stream, whatever the clock. seconds: after so many no further
    round begins, except for the first three. repeats: how many times a call does its work (by default 1); times are of
    doing it once. Raises ConfigError.
    """
    if rounds < LEAST_ROUNDS:
        raise ConfigError(f"expected at least {LEAST_ROUNDS}, for quartiles, got {rounds}", argument="rounds")
    if clock not in CLOCKS:
        raise ConfigError(f"expected one of {', '.join(CLOCKS)}, got {clock!r}", argument="clock")
    # Events are recorded on the current device, whichever the calls use.
    with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        start = time.perf_counter()
        counts = {name: _repeats(call, device, sample_seconds, clock) for name, call in calls.items()}
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds):
            if turn >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
                break
            for name in in_turn(list(calls), turn):
                samples[name].append(_sample(calls[name], device, counts[name], clock))
    done = {name: (repeats or {}).get(name, 1) for name in calls}
    return {
        name: Timing.of([value / done[name] for value in values], counts[name] * done[name])
        for name, values in samples.items()
    }


def in_turn(names: list[str], turn: int) -> list[str]:
    """The order of a round: that of `names`, then the reverse, so that no name always follows the same one."""
    return names[:: 1 if turn % 2 == 0 else -1]


def _repeats(call: Call, device: torch.device, sample_seconds: float, clock: str) -> int:
    """Warm up, and find how many calls fill a sample."""
    start, done, last = time.perf_counter(), 0, 0.0
    while done == 0 or (time.perf_counter() - start < WARM_UP_SECONDS and done < MAX_CALLS):
        began = time.perf_counter()
        call()
        done += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        last = time.perf_counter() - began
    if last > sample_seconds:
        return 1
    once = _sample(call, device, 1, clock)
    return max(1, min(MAX_CALLS, round(sample_seconds / max(once, 1e-7))))


def _sample(call: Call, device: torch.device, count: int, clock: str) -> float:
    """Seconds per call, over `count` of them."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count
    now: Callable[[], float] = getattr(time, CLOCKS[clock])
    start = now()
    for _ in range(count):
        call()
    return (now() - start) / count
