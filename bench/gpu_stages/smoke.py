"""Does anything work at all? One case of every operation, a captured sampler, a failed capture; the ceilings."""

from __future__ import annotations

import time

import torch
from torch import Tensor

import fastgen
from fastgen.bench.environment import copy_bandwidth, environment, product_rate
from fastgen.errors import CaptureError
from fastgen.runtime.capture import recorded
from fastgen.runtime.cuda_graph import CudaGraphs
from fastgen.runtime.device import dtype_name
from fastgen_kernels import OPS, use

from .stage import Stage


def run(stage: Stage) -> None:
    """Report every check with its error as a fraction of its bound, and the ceilings of this device."""
    # Once more, because nothing is recorded without it, and the first stage may have failed.
    stage.add("environment", "environment", values=environment(stage.device), dry=stage.dry)
    operations(stage)
    # The failed capture comes last: it may leave a process behind in which nothing works.
    for name, check in (
        ("a captured sampler", captured_sampler),
        ("ceilings", ceilings),
        ("a failed capture", failed_capture),
    ):
        if not stage.tried(name):
            with stage.attempt(name):
                check(stage)


def operations(stage: Stage) -> None:
    """Every operation's first production case on the kernel's path, against float64."""
    for name, op in OPS.items():
        if stage.tried(name):
            continue
        cases = [case for case in op.cases if case.production != stage.dry]  # for shapes of use, or for tests
        with stage.attempt(name):
            case = cases[0]
            dtype = torch.float32 if stage.dry or torch.bfloat16 not in case.dtypes else torch.bfloat16
            arguments = case.make(torch.Generator().manual_seed(0), stage.device, dtype)
            began = time.perf_counter()
            with use("triton"):
                outputs = op.fused(**arguments)
            if stage.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began  # compiling, for the most part
            error = max(op.errors(arguments, outputs).values())
            outcome = "passed" if error <= 1.0 else "failed"
            stage.add(
                "check",
                name,
                case=case.name,
                dtype=dtype_name(dtype),
                error=error,
                outcome=outcome,
                seconds=seconds,
            )


def failed_capture(stage: Stage) -> None:
    """After a capture that cannot be, random numbers, the allocator and the next capture work."""
    x = torch.ones(4, device=stage.device)
    capture = recorded if stage.dry else CudaGraphs(stage.device)

    def waits() -> None:
        x.mul_(x.sum().item())

    def adds() -> None:
        x.add_(1.0)

    message = ""
    try:
        capture(waits)
    except CaptureError as error:
        message = str(error)
    drawn: Tensor = torch.randn(8, device=stage.device)
    if stage.device.type == "cuda":
        torch.cuda.empty_cache()
    replay = capture(adds)
    x.zero_()
    replay()
    works = bool(message) and bool(drawn.isfinite().all()) and x.tolist() == [1.0] * 4
    stage.add("check", "a failed capture", outcome="passed" if works else "failed", message=message[:500])


def captured_sampler(stage: Stage) -> None:
    """Digits by captured steps, equal to uncaptured ones bit for bit."""
    steps, n = (2, 2) if stage.dry else (4, 4)
    backends = ("recorded" if stage.dry else True, False)
    engines = [fastgen.load("zoo:ddpm-mnist", device=stage.device, graph=graph) for graph in backends]
    captured, plain = (engine.sample(n, labels=3, steps=steps, seed=0) for engine in engines)
    equal = bool(torch.equal(captured, plain)) and bool(captured.isfinite().all())
    facts = engines[0].describe()
    stage.add(
        "check",
        "a captured sampler",
        outcome="passed" if equal else "failed",
        backend=facts["backend"],
        captured=facts["captured"],
        largest_difference=(captured - plain).abs().max().item(),
    )


def ceilings(stage: Stage) -> None:
    """A copy's bandwidth and a matrix product's rate."""
    stage.add("ceiling", "copy", value=copy_bandwidth(stage.device, 3 if stage.dry else 9))
    for dtype in (torch.float32,) if stage.dry else (torch.bfloat16, torch.float32):
        stage.add(
            "ceiling", dtype_name(dtype), value=product_rate(stage.device, dtype, 3 if stage.dry else 9)
        )
