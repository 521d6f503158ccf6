"""What torch.compile makes of the same samplers: `reduce-overhead` first, `max-autotune` with the time that is left."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import fastgen
from fastgen.bench import diffusion
from fastgen.bench.contest import How, forget
from fastgen.bench.samplers import least

from .networks import STEPS, Models
from .stage import Stage

# (model, batch, mode, seconds that it takes at least: what cannot end is not begun)
WORK = (
    ("random:cifar10", 1, "reduce-overhead", 45.0),
    ("zoo:ddpm-mnist", 1, "reduce-overhead", 25.0),
    ("random:cifar10", 64, "reduce-overhead", 45.0),
    ("random:cifar10", 1, "max-autotune", 90.0),
)


def run(stage: Stage) -> None:
    """Report a row for every model, batch and mode."""
    how = How(rounds=3 if stage.dry else 5, seconds=4.0, say=lambda words: print(words, flush=True))
    with TemporaryDirectory() as folder:
        models = Models(stage, Path(folder))
        if stage.dry:
            with stage.attempt("the least network"):
                measure(stage, least(stage.device, "ddim"), "least network", 1, "default", how)
            return
        for model, batch, mode, least_seconds in WORK:
            name = f"{model} batch {batch} {mode}"
            if not stage.begins(name, least_seconds):
                continue
            with stage.attempt(name):
                measure(stage, models.engine(model), model, batch, mode, how)
                forget(stage.device)


def measure(
    stage: Stage, engine: fastgen.DiffusionEngine, model: str, batch: int, mode: str, how: How
) -> None:
    """The engine's sampler beside the plain loop over the network that torch.compile made in `mode`."""
    began = time.perf_counter()
    torch._dynamo.reset()  # what another baseline compiled does not count against this one's number of variants
    steps = 2 if stage.dry else STEPS
    request = diffusion.ask(engine, batch, steps)
    case = f"sample {batch}, {diffusion.plan_of(request).solver} {steps}, compile {mode}"
    contest = diffusion.contest(engine, request, (), "families", model, case)
    baseline = partial(diffusion.compiled_loop, engine, request, mode)
    stage.add_row(replace(contest, baselines={"compile": baseline}).run(how), began)
