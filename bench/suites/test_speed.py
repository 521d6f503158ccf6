"""`python -m pytest bench/suites`: fastgen's own call of every case, judged first. Cases are those of `fastgen.bench`.

pytest-benchmark's options choose and compare: `-k group_norm`, `--benchmark-autosave`, `--benchmark-compare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastgen
from fastgen.bench import kernels, samplers
from fastgen.bench.contest import Contest
from fastgen.bench.families import models, on_disk, workload
from fastgen.bench.timing import Call
from fastgen.diffusion.solvers import SOLVERS
from fastgen.runtime.device import choose_device, choose_dtype
from fastgen_kernels import OPS

DEVICE = choose_device("auto")
DTYPE = choose_dtype("auto", DEVICE)
CASES = [(op.name, case.name) for op, case, _ in kernels.selected([], [], [DTYPE], DEVICE.type)]


def judged(contest: Contest) -> Call:
    """fastgen's call, once its result has been checked; on CUDA it waits for the device."""
    error = contest.judge((contest.result or contest.own)())
    assert error <= 1, "wrong: not timed"
    if DEVICE.type != "cuda":
        return contest.own

    def call() -> None:
        contest.own()
        torch.cuda.synchronize(DEVICE)

    return call


@pytest.mark.parametrize(("op", "case"), CASES)
def test_kernel(benchmark: Any, op: str, case: str) -> None:
    contest = kernels.contest(OPS[op], OPS[op].case(case), DTYPE, DEVICE, ())
    benchmark(judged(contest))


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampler(benchmark: Any, solver: str) -> None:
    how: dict[str, Any] = {"batches": [16], "steps": None, "against": ()}
    (contest,) = samplers.contests(DEVICE, solver, None, **how)
    benchmark(judged(contest))


@pytest.mark.parametrize("model", models(DEVICE.type))
def test_model(benchmark: Any, tmp_path: Path, model: str) -> None:
    """Its first contest: pytest-benchmark times one call per test."""
    engine = fastgen.load(on_disk(model, tmp_path), device=DEVICE)
    how: dict[str, Any] = {"batches": [8], "steps": None, "against": ()}
    benchmark(judged(next(workload(engine).contests(engine, suite="families", name=model, **how))))
