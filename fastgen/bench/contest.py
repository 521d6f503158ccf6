"""The same work by fastgen and its baselines: every result judged, then timed; what cannot run is left out by name."""

from __future__ import annotations

import gc
import importlib.util
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import CaptureError
from ..runtime.cuda_graph import CudaGraphs
from .results import Row
from .timing import LEAST_ROUNDS, Call, Timing, interleaved

LAUNCHED = "launched"  # the eager formula on CUDA as Python launches it, an operation at a time
# Replaying a graph takes some microseconds, as long as a small kernel: a graph of a short call repeats it so often.
REPEATS = 32
SHORT_SECONDS = 1e-3


class NotApplicable(Exception):  # noqa: N818 (nothing is wrong)
    """A baseline has no such thing, or cannot run here; says why."""


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


@dataclass(frozen=True)
class Contest:
    """One case.

    own: fastgen's call, which is timed. result: what is judged, where that is not what `own` returns. baselines:
    functions that prepare a baseline's call, or a Drawing; NotApplicable where it has none. judge: an output's worst
    deviation as a fraction of fastgen's bound. agrees: the same for a baseline's output, where another bound holds for it. captured:
    whether on CUDA everybody runs as one captured graph. row: what is known of the case before.
    """

    row: Row
    own: Call
    judge: Callable[[Any], float]
    device: torch.device
    result: Call | None = None
    baselines: Mapping[str, Callable[[], Call | Drawing]] = field(default_factory=dict)
    agrees: Callable[[Any], float] | None = None
    captured: bool = False

    def run(self, how: How) -> Row:
        """Judge everybody, then time those that passed. A wrong result of fastgen's ends it: nobody is timed."""
        with torch.no_grad():
            return self._run(how)

    def _run(self, how: How) -> Row:
        row = replace(self.row, error=self.judge((self.result or self.own)()))
        if row.wrong:
            return row.noted("wrong: nothing is timed")
        where = " ".join(row.key[1:])
        calls: dict[str, Call] = {"fastgen": self.own}
        errors: dict[str, float] = {}
        for name, prepare in self.baselines.items():
            try:
                prepared = prepare()
                drawing = prepared if isinstance(prepared, Drawing) else Drawing(prepared, prepared)
                errors[name] = (self.agrees or self.judge)(drawing.judged())
            except Exception as error:  # somebody else's code: whatever it raises, the others run
                how.say(f"{where}: {name} is left out: {_words(error)}")
                row = row.noted(f"{name}: {_words(error)}")
                continue
            if errors[name] <= 1.0:
                calls[name] = drawing.timed
            else:
                how.say(f"{where}: {name} is left out: its result differs ({errors[name]:.3g} of the bound)")
                row = row.noted(f"{name}: its result differs")
        if self.device.type == "cuda":
            row = replace(row, peak_bytes={name: peak(call, self.device) for name, call in calls.items()})
        repeats: dict[str, int] = {}
        if self.captured and self.device.type == "cuda":
            calls, repeats, row = self._as_graphs(calls, row, how)
        times = interleaved(
            calls, self.device, rounds=how.rounds, clock=how.clock, seconds=how.seconds, repeats=repeats
        )
        own = times.pop("fastgen")
        return replace(row, seconds=own, baselines=times, errors=errors)

    def _as_graphs(
        self, calls: dict[str, Call], row: Row, how: How
    ) -> tuple[dict[str, Call], dict[str, int], Row]:
        """Everybody captured, as in an engine, so that no time is lost to Python; and the formula as it is launched.

        Also how many times each does its work in a call.
        """
        where = " ".join(row.key[1:])
        graphs: dict[str, Call] = {}
        once = interleaved({"own": calls["fastgen"]}, self.device, rounds=LEAST_ROUNDS)["own"].median
        count = REPEATS if once < SHORT_SECONDS else 1
        repeats: dict[str, int] = {}
        with torch.cuda.device(self.device):
            for name, call in calls.items():
                try:
                    graphs[name] = captured(call, self.device, count)
                    repeats[name] = count
                except CaptureError as error:
                    if name == "fastgen":
                        graphs[name] = call
                        said = "fastgen is timed uncaptured, launch by launch"
                    else:
                        said = f"{name} is left out: it cannot be captured"
                    how.say(f"{where}: {said} ({_words(error)})")
                    row = row.noted(said)
        if "eager" in calls:
            graphs[LAUNCHED] = calls["eager"]
        return graphs, repeats, row


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


def compiled(formula: Callable[..., object], cuda: bool) -> Callable[..., object]:
    """`formula` under torch.compile, tuned as far as it goes; a graph is captured of it as of the others."""
    torch._dynamo.reset()  # PyTorch limits how often one function is compiled: cases after the eighth would fail
    mode = "max-autotune-no-cudagraphs" if cuda else "default"
    return torch.compile(formula, mode=mode, dynamic=False, fullgraph=True)


def no_compiler(device: torch.device) -> str:
    """Why torch.compile cannot run here, or ""."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    return "" if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler"


def fastest(calls: Mapping[str, Call], device: torch.device) -> Call:
    """The quickest of some ways to do one thing: a baseline at its best setting."""
    times: dict[str, Timing] = interleaved(calls, device, rounds=LEAST_ROUNDS)
    return calls[min(times, key=lambda name: times[name].median)]


def forget(device: torch.device) -> None:
    """Give memory back between cases."""
    gc.collect()
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _words(error: Exception) -> str:
    words = str(error).strip().partition("\n")[0][:200]
    return words if isinstance(error, NotApplicable) else f"{type(error).__name__}: {words}"
