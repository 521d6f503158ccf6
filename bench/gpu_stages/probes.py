"""Probes that decide how a fast U-Net at batch 1 is built: what a graph's node costs, and what a convolution can.

`run(stage)` reports, as soon as each is known: a chain of nodes that do nothing, with and without programmatic
dependent launch; six convolutions of the CIFAR-10 U-Net, by PyTorch and by a split-K kernel; the chain again, of nodes
that use every multiprocessor. Everything is captured in CUDA graphs, checked, and then timed in turns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.bench.timing import Timing, interleaved
from fastgen.runtime.cuda_graph import CudaGraphs
from fastgen_kernels.op import UNIT_ROUNDOFF, interpreted, rounding_bound

from .probe_kernels import (
    LEAST_PROGRAMS,
    TAPS,
    Config,
    SplitConv,
    Tile,
    candidates,
    compile_together,
    increment_kernel,
)

Replay = Callable[[], object]

NODES = 200
REPEATS = 64  # convolutions in a graph
ROUNDS = 25
SAMPLE_SECONDS = 0.004  # many replays: the first one's launch, with the device idle, is not to count
# (CIN, COUT, H, W)
SHAPES = (
    (128, 128, 32, 32),
    (256, 256, 16, 16),
    (256, 256, 8, 8),
    (256, 256, 4, 4),
    (512, 256, 16, 16),
    (256, 128, 32, 32),
)
SHAPE_SECONDS = 4.0  # cuDNN's search may take most of it
DRY_NODES = 5
DRY_SHAPE = (16, 16, 5, 6)
DRY_CONFIGS = tuple(Config(Tile(16, 16, 16, num_warps=1, num_stages=1), splits) for splits in (1, 4))


def run(stage: Any) -> None:
    """Report all probes to `stage`, a Stage or what has its members."""
    if stage.dry and not interpreted():
        stage.add("probe", "kernels", skipped="the interpreter is to run them: set TRITON_INTERPRET=1")
        return
    before = torch.backends.cudnn.benchmark
    try:
        with torch.no_grad(), _on(stage):
            if not stage.tried("chain of empty nodes"):
                with stage.attempt("chain of empty nodes"):
                    chain(stage, programs=1, block=1)
            if not stage.tried("convolutions"):
                with stage.attempt("convolutions"):
                    convolutions(stage)
            if not stage.tried("chain of pointwise nodes") and stage.left() > 1.0:
                with stage.attempt("chain of pointwise nodes"):
                    chain(stage, programs=2 if stage.dry else LEAST_PROGRAMS, block=16 if stage.dry else 1024)
    finally:
        torch.backends.cudnn.benchmark = before


def chain(stage: Any, programs: int, block: int) -> None:
    """Time a chain of nodes, each of which adds 1 to what the node before left."""
    nodes = DRY_NODES if stage.dry else NODES
    name = f"chain of {nodes} nodes of {programs} x {block} additions"
    replays: dict[str, Replay] = {}
    for label, pdl in (("plain", ""), ("PDL, allowed late", "late"), ("PDL, allowed early", "early")):
        if (pdl and not has_pdl(stage)) or f"{name}: {label}" in stage.failed:
            continue
        with stage.attempt(f"{name}: {label}"):
            values = torch.zeros(programs * block, device=stage.device)
            replay = captured(stage, chain_step(values, nodes, programs, block, pdl))
            values.zero_()
            replay()
            if not bool((values == nodes).all()):
                found = (values.min().item(), values.max().item())
                raise AssertionError(f"each value must be {nodes} after {nodes} nodes, they are {found}")
            replays[label] = replay
    if replays:
        times = timed(stage, replays, nodes)
        stage.add(
            "probe", name, us_per_node=times, nodes=nodes, programs=programs, pdl_available=has_pdl(stage)
        )


def chain_step(values: Tensor, nodes: int, programs: int, block: int, pdl: str) -> Callable[[], None]:
    """A function that launches the chain on `values`, float32 [programs * block]; pdl: of `increment_kernel`."""
    warps = max(1, min(4, block // 128))

    def step() -> None:
        for _ in range(nodes):
            increment_kernel[(programs,)](values, PDL=pdl, BLOCK=block, num_warps=warps, launch_pdl=bool(pdl))

    return step


def convolutions(stage: Any) -> None:
    """Time every shape's convolution, all kernels compiled beforehand."""
    generator = torch.Generator().manual_seed(0)
    problems = [Problem(stage, generator, shape) for shape in ((DRY_SHAPE,) if stage.dry else SHAPES)]
    if not stage.dry and not stage.tried("compiling the convolutions"):
        start = time.perf_counter()
        ours = [convolution for problem in problems for convolution in problem.ours.values()]
        with stage.attempt("compiling the convolutions"):
            compile_together(ours, threads=os.cpu_count() or 1)
            stage.add("probe", "compiling the convolutions", seconds=time.perf_counter() - start)
    # PyTorch keeps the plan that it found first for a shape, whatever `cudnn.benchmark` says later, but keeps plans by
    # thread: one for its search off, and one for on. They live as long as the graphs, which need the plans.
    with ThreadPoolExecutor(1) as off, ThreadPoolExecutor(1) as on:
        for problem in problems:
            if stage.tried(problem.name):
                continue
            if stage.left() < (0.0 if stage.dry else SHAPE_SECONDS):
                stage.add("probe", problem.name, skipped="no time left")
                continue
            with stage.attempt(problem.name):
                convolution(stage, problem, {False: off, True: on})


class Problem:
    """A convolution's arguments, its float64 result with bounds, and the split-K kernels that are to compute it."""

    def __init__(self, stage: Any, generator: torch.Generator, shape: tuple[int, int, int, int]) -> None:
        cin, cout, height, width = shape
        self.name = f"convolution {cin}->{cout} at {height}x{width}"
        # The interpreter knows no bfloat16.
        self.dtype = torch.float16 if stage.dry else torch.bfloat16
        self.shape = shape

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(stage.device, self.dtype)

        last = torch.channels_last
        self.x = normal(1, cin, height, width).contiguous(memory_format=last)
        self.weight = (normal(cout, cin, 3, 3) / math.sqrt(TAPS * cin)).contiguous(memory_format=last)
        self.bias = normal(cout)
        self.ours: dict[str, SplitConv] = {}
        for config in DRY_CONFIGS if stage.dry else candidates(height * width, cin, cout):
            for pdl in (False, True) if has_pdl(stage) else (False,):
                label = f"split-K {config}{', PDL' if pdl else ''}"
                self.ours[label] = SplitConv(self.x, self.weight, self.bias, config, pdl=pdl)

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """In float64, on CPU: the exact y, the bound of one rounding, and the bound of PyTorch's two."""
        x, weight, bias = (tensor.cpu().double() for tensor in (self.x, self.weight, self.bias))
        exact = F.conv2d(x, weight, bias, padding=1)
        magnitude = F.conv2d(x.abs(), weight.abs(), bias.abs(), padding=1)
        # As in fastgen_kernels.patch_conv.cases.accumulated: sums in float32 of random signs, in any order; tensor
        # cores cut off rather than round.
        accumulated = 8.0 + (1.36 * math.sqrt(TAPS * x.shape[1]) if self.x.is_cuda else 0.0)
        bound = rounding_bound(exact, magnitude, self.dtype, accumulated)
        # PyTorch rounds the convolution, and then its sum with the bias.
        twice = bound + 1.01 * UNIT_ROUNDOFF[self.dtype] * (exact - bias[:, None, None]).abs()
        return exact, bound, twice


def convolution(stage: Any, problem: Problem, threads: dict[bool, ThreadPoolExecutor]) -> None:
    """Check all, time those that are right, report them beside each other. threads: by `cudnn.benchmark`."""
    exact, bound, twice = problem.reference()
    repeats = 1 if stage.dry else REPEATS
    replays: dict[str, Replay] = {}
    errors: dict[str, float] = {}
    for label, ours in problem.ours.items():
        if f"{problem.name}: {label}" in stage.failed:
            continue
        with stage.attempt(f"{problem.name}: {label}"):
            # Once by itself, because the repeats of a graph would hide that one reads the sums of the one before.
            ours.partial.fill_(math.nan)
            alone = worst(ours(), exact, bound)
            replay, y = repeated(stage, ours, repeats)
            errors[label] = max(alone, worst(y, exact, bound))
            if errors[label] > 1.0:
                raise AssertionError(f"the error is {errors[label]:.3g} times its bound")
            replays[label] = replay
    for benchmark, thread in threads.items():
        label = f"F.conv2d, cudnn.benchmark {'on' if benchmark else 'off'}"
        if f"{problem.name}: {label}" in stage.failed:
            continue
        with stage.attempt(f"{problem.name}: {label}"):
            torch.backends.cudnn.benchmark = benchmark
            replay, y = thread.submit(_by_pytorch, stage, problem, repeats).result()
            # The plan is cuDNN's choice, and may round more (Winograd's): what is beyond the bound is told, and timed.
            errors[label] = worst(y, exact, twice)
            if not math.isfinite(errors[label]):
                raise AssertionError("the result is not finite")
            replays[label] = replay
    if not replays:
        return
    times = timed(stage, replays, repeats)
    best = {
        name: min((n for n in times if n.startswith(prefix)), key=lambda n: times[n]["us"], default=None)
        for name, prefix in (("best_split_k", "split-K"), ("best_pytorch", "F.conv2d"))
    }
    facts = {label: taken | {"error_over_bound": errors[label]} for label, taken in times.items()}
    note = "bias included; every repeat reads the same pixels and weights, which stay in the L2 cache"
    dtype = str(problem.dtype).removeprefix("torch.")
    stage.add(
        "probe", problem.name, us_per_call=facts, **best, dtype=dtype, repeats_per_graph=repeats, note=note
    )


def _by_pytorch(stage: Any, problem: Problem, repeats: int) -> tuple[Replay, Tensor]:
    with torch.no_grad(), _on(stage):  # both are a thread's own
        return repeated(stage, lambda: F.conv2d(problem.x, problem.weight, problem.bias, padding=1), repeats)


def repeated(stage: Any, call: Callable[[], Tensor], repeats: int) -> tuple[Replay, Tensor]:
    """`call` `repeats` times in one graph, and its last result, overwritten with NaN and then replayed once."""
    output: list[Tensor] = []

    def step() -> None:
        for _ in range(repeats):
            output[:] = [call()]

    replay = captured(stage, step)
    output[0].fill_(math.nan)
    replay()
    return replay, output[0]


def captured(stage: Any, step: Callable[[], None]) -> Replay:
    """A function that replays `step` from a CUDA graph; in a dry run `step` itself."""
    if stage.dry:
        step()
        return step
    return CudaGraphs(stage.device)(step)  # whose failures leave nothing behind


def timed(stage: Any, replays: dict[str, Replay], units: int) -> dict[str, dict[str, float]]:
    """Microseconds a unit, of which a replay has `units`: median and quartiles over the rounds."""
    if stage.dry:
        times = {label: Timing.of([_seconds(replay)]) for label, replay in replays.items()}
    else:
        seconds = max(0.5, stage.left())
        times = interleaved(
            replays, stage.device, rounds=ROUNDS, sample_seconds=SAMPLE_SECONDS, seconds=seconds
        )
    found = {}
    for label, timing in times.items():
        us, low, high = (1e6 * value / units for value in (timing.median, timing.low, timing.high))
        found[label] = {"us": us, "low": low, "high": high, "replays": timing.calls * len(timing.samples)}
    return found


def _seconds(replay: Replay) -> float:
    start = time.perf_counter()
    replay()
    return time.perf_counter() - start


def worst(y: Tensor, exact: Tensor, bound: Tensor) -> float:
    """The largest error of y as a fraction of its bound: at most 1 when right, inf for a NaN."""
    return ((y.cpu().double() - exact).abs() / bound).nan_to_num(nan=math.inf).max().item()


def has_pdl(stage: Any) -> bool:
    return not stage.dry and torch.cuda.get_device_capability(stage.device) >= (9, 0)


def _on(stage: Any) -> Any:
    return nullcontext() if stage.dry else torch.cuda.device(stage.device)
