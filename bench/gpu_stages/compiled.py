"""The same samplers by eager PyTorch and under torch.compile, in one contest each.

What takes longest, compiling, is done first, by children side by side: they leave their work in the cache that all
stages share. Nothing is timed meanwhile. `max-autotune` so chooses its kernels on a GPU that others use a little.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import fastgen
from fastgen.bench import diffusion
from fastgen.bench.contest import How, forget
from fastgen.bench.samplers import least

from . import compile_ahead
from .networks import CIFAR, LARGE, MNIST, Models, steps_of
from .stage import Stage

OVERHEAD, AUTOTUNE = "reduce-overhead", "max-autotune"
# (model, batch, modes): the ratios that decide first.
WORK = (
    (CIFAR, 1, (OVERHEAD, AUTOTUNE)),
    (LARGE, 1, (OVERHEAD,)),
    (CIFAR, 256, (OVERHEAD,)),
    (LARGE, 16, (OVERHEAD,)),
    (MNIST, 1, (OVERHEAD,)),
)
AHEAD = 0.6  # most of the stage's time that may go by before the first contest
UNIT_SECONDS = 12.0  # of a contest, for each mode: the cache saves the compiler, not the tracing
COLD_SECONDS = 45.0  # of a mode that no child has compiled


def run(stage: Stage) -> None:
    """Report a row for every model and batch."""
    how = How(rounds=3 if stage.dry else 5, seconds=4.0, say=lambda words: print(words, flush=True))
    with TemporaryDirectory() as folder:
        models = Models(stage, Path(folder))
        if stage.dry:
            warm = ahead(stage, [(compile_ahead.LEAST, 1, compile_ahead.DEFAULT)])
            print(f"compiled ahead: {warm}", flush=True)
            with stage.attempt("the least network"):
                measure(stage, least(stage.device, "ddim"), "least network", 1, (compile_ahead.DEFAULT,), how)
            return
        warm = ahead(
            stage, [(models.source(model), batch, mode) for model, batch, modes in WORK for mode in modes]
        )
        for model, batch, modes in WORK:
            name = f"{model} batch {batch} {', '.join(modes)}"
            source = models.source(model)
            cold = sum((source, batch, mode) not in warm for mode in modes)
            if not stage.begins(name, UNIT_SECONDS * len(modes) + COLD_SECONDS * cold):
                continue
            with stage.attempt(name):
                measure(stage, models.engine(model), model, batch, modes, how)
                forget(stage.device)


def ahead(stage: Stage, sources: Sequence[tuple[str, int, str]]) -> set[tuple[str, int, str]]:
    """Compile (source, batch, mode) side by side; those that ended well and in time. Each is reported."""
    if stage.tried("compiled ahead"):  # an earlier process of this stage has left its cache
        return set(sources)
    began, until = time.time(), time.time() + AHEAD * stage.left()
    warm = set()
    with stage.attempt("compiled ahead"):
        for key, child in zip(sources, compile_ahead.start(sources, stage), strict=True):
            try:
                code = child.wait(max(0.0, until - time.time()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                code = None
            if code == 0:
                warm.add(key)
            took = round(time.time() - began, 1)
            name = f"compiled ahead: {Path(key[0]).name} batch {key[1]} {key[2]}"
            stage.add("fact", name, code=code, seconds=took)
    return warm


def measure(
    stage: Stage, engine: fastgen.DiffusionEngine, model: str, batch: int, modes: Sequence[str], how: How
) -> None:
    """The engine's sampler beside the plain loop over the network: eager, and as torch.compile made it in `modes`."""
    began = time.perf_counter()
    torch._dynamo.reset()  # what another baseline compiled does not count against this one's number of variants
    request = diffusion.ask(engine, batch, steps_of(stage, model))
    plan = diffusion.plan_of(request)
    case = f"sample {batch}, {plan.solver} {plan.steps}, compiled"
    contest = diffusion.contest(engine, request, ("eager",), "families", model, case)
    compiled = {f"compile, {mode}": partial(diffusion.compiled_loop, engine, request, mode) for mode in modes}
    stage.add_row(replace(contest, baselines={**contest.baselines, **compiled}).run(how), began)
