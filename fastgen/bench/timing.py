"""How a time is taken: rivals interleaved in one process, order turned around every round, medians with quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

Call = Callable[[], object]

WARM_UP_SECONDS = 0.05
MAX_CALLS = 10_000


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and quartiles over the rounds, and how many calls a round had."""

    median: float
    low: float
    high: float
    calls: int


def interleaved(
    calls: Mapping[str, Call], device: torch.device, *, rounds: int = 9, sample_seconds: float = 0.02
) -> dict[str, Timing]:
    """Time every one of `calls`, in turns.

    rounds: how often each gets its turn, 3 at least. sample_seconds: how long a turn should take; short calls are
    repeated. On CUDA a turn is timed by events on the current stream, elsewhere by the clock.
    """
    if rounds < 3:
        raise ValueError(f"rounds: expected at least 3, for quartiles, received {rounds}")
    # Events are recorded on the current device, whichever the calls use.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return _interleaved(calls, device, rounds, sample_seconds)


def _interleaved(
    calls: Mapping[str, Call], device: torch.device, rounds: int, sample_seconds: float
) -> dict[str, Timing]:
    counts = {name: _repeats(call, device, sample_seconds) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name in order:
            samples[name].append(_sample(calls[name], device, counts[name]))
    return {name: summary(values, counts[name]) for name, values in samples.items()}


def summary(samples: list[float], calls: int) -> Timing:
    """Median and quartiles of `samples`, seconds a call."""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(statistics.median(samples), low, high, calls)


def _repeats(call: Call, device: torch.device, sample_seconds: float) -> int:
    """Warm up, and find how many calls fill a sample."""
    start, done = time.perf_counter(), 0
    while done < 2 or (time.perf_counter() - start < WARM_UP_SECONDS and done < MAX_CALLS):
        call()
        done += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    once = _sample(call, device, 1)
    return max(1, min(MAX_CALLS, round(sample_seconds / max(once, 1e-7))))


def _sample(call: Call, device: torch.device, count: int) -> float:
    """Seconds a call, over `count` of them."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
