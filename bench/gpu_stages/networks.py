"""Whole models by eager PyTorch and as captured graphs, and the kernels that one step of the U-Net is made of."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import fastgen
from fastgen.bench import diffusion
from fastgen.bench.contest import Contest, How, forget
from fastgen.bench.families import on_disk, workload
from fastgen.bench.timing import Call

from .stage import Stage

CIFAR, LARGE, MNIST, GLOW = "random:cifar10", "random:celebahq256", "zoo:ddpm-mnist", "zoo:glow-mnist"
DIFFUSION = (CIFAR, LARGE, MNIST)
# (model, batch): latency and throughput of the two U-Nets first.
WORK = (
    (CIFAR, 1), (LARGE, 1), (MNIST, 1), (GLOW, 1), (CIFAR, 256), (LARGE, 16), (MNIST, 64), (GLOW, 64), (CIFAR, 16),
    (MNIST, 16), (GLOW, 16),
)  # fmt: skip
TABLES = ((CIFAR, 1), (LARGE, 1), (CIFAR, 256))
VERBS = ("sample", "log_prob")
STEPS, LARGE_STEPS = 20, 5  # of a sampler
UNIT_SECONDS = 6.0  # of a contest
LARGE_SECONDS = 12.0  # of one of the large U-Net, 0.5 TFLOP an image and step
TABLE_SECONDS = 8.0  # of all tables
TABLE_REPLAYS = 3
ROUNDS = 5


class Models:
    """Engines by model and whether they capture, opened once."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        self.engines: dict[tuple[str, bool], Any] = {}
        self.sources: dict[str, str] = {}

    def source(self, model: str) -> str:
        """What fastgen.load takes for it."""
        if model not in self.sources:
            self.sources[model] = on_disk(model, self.folder)
        return self.sources[model]

    def engine(self, model: str, graph: bool = True) -> Any:
        """An engine; in a dry run nothing is captured."""
        if (model, graph) not in self.engines:
            used = graph and not self.stage.dry
            self.engines[model, graph] = fastgen.load(
                self.source(model), device=self.stage.device, graph=used
            )
        return self.engines[model, graph]

    def contests(self, model: str, batch: int, against: Sequence[str]) -> Iterator[Contest]:
        """The verbs of a model at a batch, beside `against`."""
        engine = self.engine(model)
        steps = steps_of(self.stage, model)
        how: dict[str, Any] = {"batches": [batch], "steps": steps, "against": against}
        for contest in workload(engine).contests(engine, suite="families", name=model, **how):
            if contest.row.case.startswith(VERBS):
                yield contest


def steps_of(stage: Stage, model: str) -> int:
    """Steps of a sampler of `model`."""
    return 2 if stage.dry else LARGE_STEPS if model == LARGE else STEPS


def run(stage: Stage) -> None:
    """Report a row for every model, batch and verb, then tables of kernels.

    The profiler comes when all times are taken: once it is loaded, launches may take longer.
    """
    how = How(rounds=3 if stage.dry else ROUNDS, seconds=4.0, say=lambda words: print(words, flush=True))
    work = ((MNIST, 1), (GLOW, 1)) if stage.dry else WORK
    with TemporaryDirectory() as folder:
        models = Models(stage, Path(folder))
        for model, batch in work:
            name = f"{model} batch {batch}"
            seconds = LARGE_SECONDS if model == LARGE else UNIT_SECONDS
            if not stage.begins(name, seconds + TABLE_SECONDS):
                continue
            with stage.attempt(name):
                measure(stage, models, model, batch, how)
        for model, batch in ((MNIST, 1),) if stage.dry else TABLES:
            name = f"kernels of a step of {model} at batch {batch}"
            if not stage.begins(name, TABLE_SECONDS / 4):
                continue
            with stage.attempt(name):
                step_table(stage, models.engine(model), model, batch)


def measure(stage: Stage, models: Models, model: str, batch: int, how: How) -> None:
    """A model's verbs by eager PyTorch; diffusion's also by the engine without capture, bit for bit the same."""
    for contest in models.contests(model, batch, ("eager",)):
        began = time.perf_counter()
        if model in DIFFUSION:
            plain = models.engine(model, graph=False)
            request = diffusion.ask(plain, batch, steps_of(stage, model)).to_dict()
            uncaptured = partial(plain.sample, **request)
            same_bits(stage, f"{model} batch {batch}: a replay's bits", contest.own, uncaptured)
            baselines = {**contest.baselines, "uncaptured": lambda call=uncaptured: call}
            contest = replace(contest, baselines=baselines)
        stage.add_row(contest.run(how), began)
        forget(stage.device)


def same_bits(stage: Stage, name: str, captured: Call, uncaptured: Call) -> None:
    """Report whether both calls return the same, each on warm engines."""
    for call in (captured, uncaptured):
        call()
    a, b = captured(), uncaptured()
    equal = bool(torch.equal(a, b)) and bool(a.isfinite().all())
    outcome = "passed" if equal else "failed"
    stage.add("check", name, outcome=outcome, largest_difference=(a - b).abs().max().item())


def step_table(stage: Stage, engine: Any, model: str, batch: int) -> None:
    """Name, count and microseconds of the kernels of one step, the longest first.

    The step is one that was captured: what it draws is not used: every sample is on the idle row.
    """
    from torch.profiler import ProfilerActivity, profile

    # Captures the step again, where a larger batch took its place.
    engine.sample(**diffusion.ask(engine, batch, 1).to_dict())
    loop = engine.loop
    keys = [key for key in loop.graphs if key[0] == batch]
    if not keys:
        raise RuntimeError(f"no captured step of batch {batch} in {list(loop.graphs)}")
    cuda = stage.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    loop.graphs.replay(keys[-1])
    with profile(activities=activities) as profiled:
        for _ in range(TABLE_REPLAYS):
            loop.graphs.replay(keys[-1])
        if cuda:
            torch.cuda.synchronize()
    rows = []
    for event in profiled.key_averages():
        micros = event.self_device_time_total if cuda else event.self_cpu_time_total
        if micros > 0 and (not cuda or event.device_type == torch.autograd.DeviceType.CUDA):
            rows.append((event.key[:160], event.count / TABLE_REPLAYS, round(micros / TABLE_REPLAYS, 2)))
    rows.sort(key=lambda row: -row[2])
    stage.add(
        "step_kernels",
        f"{model} batch {batch}",
        kernels=sum(count for _, count, _ in rows),
        microseconds=sum(micros for *_, micros in rows),
        rows=rows[:60],
        step=str(keys[-1]),
        note="a row that draws no noise",
    )
