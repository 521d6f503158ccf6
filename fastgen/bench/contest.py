"""The same work by fastgen and its baselines: every result judged, then timed; what cannot run is left out by name."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import CaptureError
from ..runtime.cuda_graph import CudaGraphs
from .results import Row
from .timing import LEAST_ROUNDS, Call, interleaved

LAUNCHED = "launched"  # the eager formula on CUDA as Python launches it, one operation at a time
# Replaying a graph takes some microseconds, as long as a small kernel: a graph of a short call repeats it so often.
REPEATS = 32
SHORT_SECONDS = 1e-3


class NotApplicable(Exception):  # noqa: N818 (nothing is wrong)
    """A baseline has no such thing, or cannot run here; the message says why."""


@dataclass(frozen=True)
class How:
    """How long and by which clock: the arguments of `timing.interleaved`. say: takes a line about what is left out."""

    rounds: int = 9
    clock: str = "wall"
    seconds: float = float("inf")
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Drawing:
    """A baseline that draws noise: judged on fastgen's, so that results can be compared; timed with its own to make."""

    judged: Call
    timed: Call


Prepare = Callable[[], Call | Drawing]


@dataclass(frozen=True)
class Contest:
    """One case.

    row: what is known of the case before. own: fastgen's call, which is timed. result: what is judged, where that is
    not what `own` returns. judge: an output's worst deviation as a fraction of fastgen's bound. baselines: functions
    that prepare a baseline's call; NotApplicable where it has none. agrees: as judge, of a baseline's output, where
    another bound holds for it. captured: whether on CUDA each runs as one captured graph.
    """

    row: Row
    own: Call
    judge: Callable[[Any], float]
    device: torch.device
    result: Call | None = None
    baselines: Mapping[str, Prepare] = field(default_factory=dict)
    agrees: Callable[[Any], float] | None = None
    captured: bool = False

    @torch.no_grad()
    def run(self, how: How) -> Row:
        """Judge each, then time those that passed. After a wrong result of fastgen's nothing is timed."""
        row = replace(self.row, error=self.judge((self.result or self.own)()))
        if row.wrong:
            return row.noted("wrong: nothing is timed")
        notes: list[str] = []

        def note(words: str) -> None:
            how.say(f"{row.title}: {words}")
            notes.append(words)

        calls: dict[str, Call] = {"fastgen": self.own}
        errors: dict[str, float] = {}
        for name, prepare in self.baselines.items():
            try:
                prepared = prepare()
                drawing = prepared if isinstance(prepared, Drawing) else Drawing(prepared, prepared)
                errors[name] = (self.agrees or self.judge)(drawing.judged())
            except Exception as error:  # code of another project: whatever it raises, the others run
                note(f"{name} is left out: {_words(error)}")
                continue
            if errors[name] <= 1.0:
                calls[name] = drawing.timed
            else:
                note(f"{name} is left out: its result differs ({errors[name]:.3g} of the bound)")
        peaks: dict[str, int] = {}
        repeats: dict[str, int] = {}
        if self.device.type == "cuda":
            peaks = {name: peak(call, self.device) for name, call in calls.items()}
            if self.captured:
                calls, repeats = as_graphs(calls, self.device, note)
        options: dict[str, Any] = {"rounds": how.rounds, "clock": how.clock, "seconds": how.seconds}
        times = interleaved(calls, self.device, repeats=repeats, **options)
        row = replace(row, seconds=times.pop("fastgen"), baselines=times, errors=errors, peak_bytes=peaks)
        return replace(row, notes=(*row.notes, *notes))


def as_graphs(
    calls: dict[str, Call], device: torch.device, note: Callable[[str], None]
) -> tuple[dict[str, Call], dict[str, int]]:
    """Each call captured, as in an engine, so that no time is lost to Python; and the eager formula as it is launched.

    Also how many times each does its work in a call. What cannot be captured: fastgen's is timed as it is, a baseline's
    is left out; `note` is told.
    """
    once = interleaved({"own": calls["fastgen"]}, device, rounds=LEAST_ROUNDS)["own"].median
    count = REPEATS if once < SHORT_SECONDS else 1
    graphs: dict[str, Call] = {}
    repeats: dict[str, int] = {}
    with torch.cuda.device(device):
        for name, call in calls.items():
            try:
                graphs[name] = captured(call, device, count)
                repeats[name] = count
            except CaptureError as error:
                if name == "fastgen":
                    graphs[name] = call
                    note(f"fastgen is timed uncaptured, launch by launch ({_words(error)})")
                else:
                    note(f"{name} is left out: it cannot be captured ({_words(error)})")
    if "eager" in calls:
        graphs[LAUNCHED] = calls["eager"]
    return graphs, repeats


def captured(call: Call, device: torch.device, repeats: int = 1) -> Call:
    """`call`, `repeats` times, as a CUDA graph. Raises CaptureError where a graph cannot hold it."""
    call()
    try:
        torch.cuda.set_sync_debug_mode("error")  # a wait is found here, where it breaks nothing
        call()
    except RuntimeError as error:
        raise CaptureError(f"it waits for the device: {error}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")

    def step() -> None:
        for _ in range(repeats):
            call()  # what it returns is freed at once, and its memory used again

    return CudaGraphs(device)(step)


def peak(call: Call, device: torch.device) -> int:
    """Bytes of device memory that one call takes at its peak, above what was there."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def compiled(formula: Callable[..., Any], cuda: bool) -> Callable[..., Any]:
    """`formula` under torch.compile, tuned as far as it goes; a graph is captured of it as of the others."""
    torch._dynamo.reset()  # PyTorch limits how often one function is compiled: cases after the eighth would fail
    mode = "max-autotune-no-cudagraphs" if cuda else "default"
    return torch.compile(formula, mode=mode, dynamic=False, fullgraph=True)


def plain_pytorch(
    formula: Callable[..., Any], call: Callable[[Callable[..., Any]], Call | Drawing], device: torch.device
) -> dict[str, Prepare]:
    """The baselines that every formula has: as it is, and under torch.compile. call: makes the call of a formula."""
    return {
        "eager": lambda: call(formula),
        "compile": lambda: call(compiled(formula, device.type == "cuda")),
    }


def chosen(prepared: Mapping[str, Prepare], against: Collection[str]) -> dict[str, Prepare]:
    """Those that are asked for, in the order in which they are asked for."""
    return {name: prepared[name] for name in against if name in prepared}


def fastest(calls: Mapping[str, Call], device: torch.device, clock: str = "wall") -> str:
    """The name of the quickest of some ways to do one thing: a baseline at its best setting."""
    times = interleaved(calls, device, rounds=LEAST_ROUNDS, clock=clock)
    return min(times, key=lambda name: times[name].median)


def forget(device: torch.device) -> None:
    """Give memory back between cases."""
    gc.collect()
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _words(error: Exception) -> str:
    words = str(error).strip().partition("\n")[0][:200]
    return words if isinstance(error, NotApplicable) else f"{type(error).__name__}: {words}"
