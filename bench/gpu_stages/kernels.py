"""Kernels at their production shapes: checked against float64, then beside eager PyTorch and a copy's bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from fastgen.bench import chains, kernels, suites
from fastgen.bench.contest import Contest, How
from fastgen.bench.environment import copy_bandwidth
from fastgen.bench.results import Results
from fastgen.runtime.device import dtype_name
from fastgen_kernels import OPS
from fastgen_kernels.rows import wide_rows

from .stage import Stage

BF16, F32 = torch.bfloat16, torch.float32
# (operation, case, dtype, whether the plan of 128-byte rows is timed beside the chosen one): what decides first.
HEADLINES = (
    ("reverse_step", "lsun64", BF16, False),
    ("reverse_step", "lsun64_ancestral", BF16, False),
    ("group_norm", "cifar256", BF16, True),
    ("adain", "vgg16_last", BF16, True),
    ("affine_coupling", "large_sigmoid", F32, False),
    ("group_norm", "lsun16", BF16, False),
    ("group_norm", "scale_shift64", BF16, True),
    ("reverse_step", "session1", BF16, False),
    ("adain", "vgg16", BF16, False),
    ("adain", "patchgan64_last", BF16, True),
    ("affine_coupling", "large", F32, False),
    ("affine_coupling", "large_last", BF16, False),
    ("group_norm", "cifar256_up", BF16, True),
    ("group_norm", "cifar1", BF16, False),
    ("reverse_step", "lsun64", F32, False),
    ("reverse_step", "lsun64_ancestral", F32, False),
    ("adain", "vgg1_last", BF16, True),
    ("adain", "stylegan64", BF16, False),
)
CHAIN_AFTER, CHAIN_BATCHES = (
    4,
    (1, 64),
)  # how many headlines come before PatchGAN's layers one after the other
UNIT_SECONDS = 4.0  # of a case, with compiling


def run(stage: Stage) -> None:
    """Report a row for every case, with what the copy of this run makes of it."""
    how = How(rounds=3 if stage.dry else 9, say=lambda words: print(words, flush=True))
    plan = suites.Plan(stage.device, ("eager",), how, Results({}))
    plan.results.ceilings["copy"] = copy = copy_bandwidth(stage.device, how.rounds)
    stage.add("ceiling", "copy", value=copy)
    for name, make in cases(stage):
        if not stage.begins(name, UNIT_SECONDS):
            continue
        with stage.attempt(name):
            began = time.perf_counter()
            for row in suites.finished((make() for _ in range(1)), plan):
                stage.add_row(row, began)


def cases(stage: Stage) -> Iterator[tuple[str, Callable[[], Contest]]]:
    """(name, a function that makes the contest), PatchGAN's chain of convolutions too; in a dry run the smallest."""
    if stage.dry:
        for name, op in OPS.items():
            small = next(case for case in op.cases if not case.production)
            yield f"{name} {small.name}", lambda op=op, small=small: beside(op, small, F32, stage, False)
        yield "patch_gan batch 1 float32", lambda: chain(stage, 1, F32)
        return
    for i, (name, case, dtype, wide) in enumerate(HEADLINES):
        if i == CHAIN_AFTER:
            for batch in CHAIN_BATCHES:
                yield f"patch_gan batch {batch} bfloat16", lambda batch=batch: chain(stage, batch, BF16)
        op = OPS[name]
        yield (
            f"{name} {case} {dtype_name(dtype)}",
            lambda op=op, case=case, dtype=dtype, wide=wide: beside(op, op.case(case), dtype, stage, wide),
        )


def beside(op: Any, case: Any, dtype: torch.dtype, stage: Stage, wide: bool) -> Contest:
    """A case beside eager PyTorch; `wide`: and beside itself with rows of 128 bytes."""
    contest = kernels.contest(op, case, dtype, stage.device, ("eager",))
    if not wide:
        return contest

    def wide_call() -> object:
        with wide_rows():
            return contest.own()

    return replace(contest, baselines={**contest.baselines, "wide_rows": lambda: wide_call})


def chain(stage: Stage, batch: int, dtype: torch.dtype) -> Contest:
    """PatchGAN's layers one after the other."""
    how: dict[str, Any] = {"dtypes": [dtype], "against": ("eager",), "batches": [batch]}
    return next(chains.contests(stage.device, **how, size=64 if stage.dry else chains.SIZE))
