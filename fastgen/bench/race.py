"""The same work done by rivals, each at its best: what is timed, and what is left out because it cannot run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from ..errors import CaptureError
from ..runtime.cuda_graph import CudaGraphs
from .timing import Call, Timing, interleaved

RIVALS = ("eager", "compile")
LAUNCHED = "launched"  # the eager formula on CUDA as Python launches it, an operation at a time


def compiled(formula: Callable[..., object], cuda: bool) -> Callable[..., object]:
    """`formula` under torch.compile, tuned as far as it goes; a graph is captured of it as of the others."""
    torch._dynamo.reset()  # otherwise cases after the eighth would run uncompiled
    mode = "max-autotune-no-cudagraphs" if cuda else "default"
    return torch.compile(formula, mode=mode, dynamic=False, fullgraph=True)


def race(
    own: Call,
    formula: Call,
    compile_formula: Callable[[], Call],
    against: Sequence[str],
    device: torch.device,
    rounds: int,
) -> dict[str, Timing]:
    """Times of "fastgen" and its rivals, interleaved; a rival that fails is named on stderr and left out.

    On CUDA everybody runs as a captured graph, as in an engine: no time is lost to Python. The formula as Python
    launches it is one rival more, "launched".
    """
    calls: dict[str, Call] = {"fastgen": own}
    if "eager" in against:
        calls["eager"] = formula
    if "compile" in against:
        try:
            calls["compile"] = compile_formula()
            calls["compile"]()  # compiles
        except Exception as error:
            _left_out(calls, "compile", error)
    if device.type == "cuda":
        with torch.cuda.device(device):
            graphs = {name: captured(call, device) for name, call in list(calls.items())}
        if "eager" in against:
            graphs[LAUNCHED] = formula
        calls = {name: call for name, call in graphs.items() if call is not None}
        if "fastgen" not in calls:
            calls["fastgen"] = own
        for name in graphs.keys() - calls.keys():
            print(f"{name} is left out: it cannot be captured", file=sys.stderr)
    with torch.no_grad():
        return interleaved(calls, device, rounds=rounds)


def captured(call: Call, device: torch.device) -> Call | None:
    """`call` as a CUDA graph; None where a graph cannot hold it."""
    with torch.no_grad():
        call()
        try:
            torch.cuda.set_sync_debug_mode("error")  # a wait is found here, where it breaks nothing
            call()
        except RuntimeError:
            return None
        finally:
            torch.cuda.set_sync_debug_mode("default")
        try:
            return CudaGraphs(device)(lambda: _discard(call()))
        except CaptureError:
            return None


def _discard(result: object) -> None:
    del result


def _left_out(calls: dict[str, Call], name: str, error: Exception) -> None:
    calls.pop(name, None)
    words = str(error).strip().partition("\n")[0]
    print(f"{name} is left out: {type(error).__name__}: {words[:200]}", file=sys.stderr)
