"""What only a fresh process can tell: time to the first picture, and peak memory.

`measure` starts children (`child.py`) in turns: each draws twice, and says when it had what and how much memory it
took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import child
from .contest import How
from .results import Row
from .timing import Timing

PHASES = ("imports", "loaded", "first picture", "second picture")


def measure(
    row: Row,
    judge: Callable[[Tensor], float],
    orders: Mapping[str, dict[str, Any]],
    how: How,
    start: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Row:
    """`row` with times to the first picture in fresh processes, rounds interleaved, and their peak memory.

    orders: "fastgen" and its baselines -> what `child.py` is told. judge: of a picture batch, as in a contest. `phases`
    gets the seconds each phase took; `peak_bytes` the most that a whole process held, imports included: projects import
    at different moments, so that nothing less can be compared. On CUDA it is GPU memory alone. Medians over rounds. No
    round begins after how.seconds, but for the first. start: runs a child (for tests).
    """
    start = start or run_child
    who = list(orders)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in who}
    errors: dict[str, float] = {}
    began = time.perf_counter()
    for turn in range(how.rounds):
        if turn and time.perf_counter() - began > how.seconds:
            break
        for name in list(who) if turn % 2 == 0 else who[::-1]:
            try:
                report = start({**orders[name], "who": name})
            except RuntimeError as error:
                if name == "fastgen":
                    raise
                how.say(f"{row.name}: {name} is left out: {error}")
                who.remove(name)
                del found[name]
                continue
            errors[name] = max(errors.get(name, 0.0), judge(report["images"]))
            found[name].append(report)
    row = replace(row, error=errors.pop("fastgen"), errors=errors)
    if row.wrong:
        return row.noted("wrong: nothing is timed")
    for name in [name for name, error in errors.items() if not error <= 1.0]:
        how.say(f"{row.name}: {name} is left out: its result differs")
        row = row.noted(f"{name}: its result differs")
        del found[name]
    key = "cpu" if how.clock == "cpu" else "wall"
    times = {name: Timing.of([r[key]["first picture"] for r in reports]) for name, reports in found.items()}
    phases = {name: _phases([report[key] for report in reports]) for name, reports in found.items()}
    peaks = {name: _median([r["peak_bytes"] for r in reports]) for name, reports in found.items()}
    own = times.pop("fastgen")
    return replace(row, seconds=own, baselines=times, phases=phases, peak_bytes=peaks)


def _phases(marks: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds that each phase took by itself."""
    before, found = 0.0, {}
    for phase in PHASES:
        at = Timing.of([mark[phase] for mark in marks]).median
        found[phase], before = at - before, at
    return found


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def run_child(order: dict[str, Any]) -> dict[str, Any]:
    """Run one fresh process: seconds since it was started at the end of each phase, bytes, and its first pictures.

    Raises RuntimeError with the last line of what it said where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "first.pt"
        told = {**order, "started": time.time(), "picture": str(picture)}
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": _search_path()}
        command = [sys.executable, child.__file__, json.dumps(told)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])
        report = json.loads(done.stdout.splitlines()[-1])
        report["images"] = torch.load(picture, weights_only=True)
        return report


def _search_path() -> str:
    """Where this process finds fastgen and what else it was told of."""
    package = Path(child.__file__).parents[2]
    return os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
