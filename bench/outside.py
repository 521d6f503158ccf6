"""Do the benchmark's figures agree with a plain timing of the same calls? `python -m bench.outside`

Times calls with a loop and a clock, nothing of `fastgen.bench` in between, five times in turns with the benchmark, and
prints the median of the five quotients. Exit code 1 where one is off by more than 10 %. By processor time, so that
other work on the machine counts for little; on CUDA by the wall clock around a synchronised loop.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

import fastgen
from fastgen.bench import diffusion, kernels
from fastgen.bench.contest import Contest, How
from fastgen.runtime.device import choose_device, choose_dtype
from fastgen_kernels import OPS

TIMES = 5
ALLOWED = 0.10
KERNELS = (("adain", "stylegan64"), ("group_norm", "mnist1"), ("affine_coupling", "glow64"))


def contests(device: torch.device) -> dict[str, tuple[Contest, Callable[[], object]]]:
    """What is timed: the benchmark's contest, and the call as a user writes it."""
    dtype, found = choose_dtype("auto", device), {}
    for op, case in KERNELS:
        contest = kernels.contest(OPS[op], OPS[op].case(case), dtype, device, ())
        found[f"{op} {case}"] = (contest, contest.own)
    engine = fastgen.load("zoo:ddpm-mnist", device=device)
    (contest,) = diffusion.contests(engine, suite="families", name="zoo", batches=[1], steps=5, against=())
    arguments = diffusion.ask(engine, 1, 5).to_dict()
    found["zoo:ddpm-mnist sample 1"] = (contest, lambda: engine.sample(**arguments))
    return found


def plainly(call: Callable[[], object], device: torch.device) -> float:
    """Seconds per call, over a quarter of a second of calls."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(3):
        call()
    _finish(device)
    start, count = clock(), 0
    while count < 3 or clock() - start < 0.25:
        call()
        count += 1
        if device.type == "cuda" and count % 50 == 0:
            _finish(device)
    _finish(device)
    return (clock() - start) / count


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def main() -> int:
    """Print one line per case; the exit code is 1 where figures do not agree."""
    device, off = choose_device("auto"), False
    how = How(rounds=5, clock="cpu")
    for name, (contest, call) in contests(device).items():
        quotients = []
        for _ in range(TIMES):
            before = plainly(call, device)
            seconds = contest.run(how).seconds
            assert seconds is not None, f"{name}: wrong result"
            outside = (before + plainly(call, device)) / 2  # a machine that slows down meanwhile falls out
            quotients.append(seconds.median / outside)
        middle = statistics.median(quotients)
        off |= abs(middle - 1) > ALLOWED
        shown = " ".join(f"{q:.3f}" for q in sorted(quotients))
        print(f"{name}: benchmark / outside = {middle:.3f} (of {shown})", flush=True)
    return int(off)


if __name__ == "__main__":
    sys.exit(main())
