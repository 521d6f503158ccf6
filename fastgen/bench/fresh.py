"""What only a fresh process can tell: time to the first image, and peak memory.

`measure` starts children (`child.py`) in turns: each draws twice, and reports when it reached which phase and how much
memory it took.
"""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median, median_low
from typing import Any

import torch

import fastgen.converters
import fastgen_kernels

from . import child
from .child import FLOOR
from .contest import How
from .results import Row
from .timing import Timing, in_turn

PHASES = ("imports", "loaded", "first image", "second image")
Order = dict[str, Any]


def run_child(order: Order) -> dict[str, Any]:
    """Run one fresh process: seconds since its start at the end of each phase, bytes, and its first result.

    Raises RuntimeError with the last line of what it printed where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "first.pt"
        told = {**order, "started": time.time(), "result": str(result)}
        package = str(Path(child.__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        command = [sys.executable, child.__file__, json.dumps(told)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if result.exists():
            report["result"] = torch.load(result, weights_only=True)
        return report


def measure(
    row: Row,
    judge: Callable[[Any], float],
    orders: Mapping[str, Order],
    how: How,
    start: Callable[[Order], dict[str, Any]] = run_child,
    floor: bool = False,
) -> Row:
    """`row` with times to the first image in fresh processes, in turns, and their peak memory: medians over rounds.

    judge: of a result, as in a contest. orders: "fastgen" and its baselines -> what `child.py` is told. `phases` gets
    the seconds that each phase took; `peak_bytes` the most that a whole process held, imports included: projects import
    at different moments, so that nothing less can be compared. On CUDA it is GPU memory alone. After how.seconds no
    further round begins. start: runs a child. A baseline that fails or differs is left out; RuntimeError where
    fastgen's child fails. floor: time in every round, too, what ``import torch`` alone takes; the row's notes say how
    many times as long the first image is.
    """
    compile_packages()
    floors: list[float] = []
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in orders}
    errors = dict.fromkeys(orders, 0.0)

    def leave_out(name: str, why: str) -> None:
        nonlocal row
        how.say(f"{row.name}: {name} is left out: {why}")
        row = row.noted(f"{name} is left out: {why}")
        del reports[name]

    began = time.perf_counter()
    for turn in range(how.rounds):
        if turn and time.perf_counter() - began > how.seconds:
            break
        for name in in_turn([*reports, *([FLOOR] if floor else [])], turn):
            if name == FLOOR:
                floors.append(start({"who": FLOOR})[how.clock]["imports"])
                continue
            try:
                report = start({**orders[name], "who": name})
            except RuntimeError as error:
                if name == "fastgen":
                    raise
                leave_out(name, str(error))
                continue
            errors[name] = max(errors[name], judge(report.pop("result")))
            reports[name].append(report)
    row = replace(
        row, error=errors.pop("fastgen"), errors={name: errors[name] for name in reports if name in errors}
    )
    if row.wrong:
        return row.noted("wrong: nothing is timed")
    for name, off in row.errors.items():
        if not off <= 1.0:
            leave_out(name, f"its result differs ({off:.3g} of the bound)")
    marks = {name: [report[how.clock] for report in found] for name, found in reports.items()}
    times = {name: Timing.of([mark["first image"] for mark in found]) for name, found in marks.items()}
    if floor:
        alone = Timing.of(floors)
        ratio = times["fastgen"].over(alone)
        row = row.noted(
            f"{ratio.median:.2f} ({ratio.low:.2f} - {ratio.high:.2f}) times as long as {FLOOR} alone, "
            f"{alone.median:.2f} s"
        )
    return replace(
        row,
        seconds=times.pop("fastgen"),
        baselines=times,
        phases={name: _phases(found) for name, found in marks.items()},
        peak_bytes={n: median_low(report["peak_bytes"] for report in found) for n, found in reports.items()},
    )


def compile_packages() -> None:
    """Have our bytecode on disk, as pip leaves it: a child that compiles 200 files would time Python's compiler."""
    for file in (fastgen.__file__, fastgen_kernels.__file__, fastgen.converters.__file__):
        assert file is not None
        compileall.compile_dir(Path(file).parent, quiet=2)


def _phases(marks: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds that each phase took by itself."""
    ends = [median(mark[phase] for mark in marks) for phase in PHASES]
    return {phase: end - before for phase, end, before in zip(PHASES, ends, [0.0, *ends], strict=False)}
