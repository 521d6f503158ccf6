"""Kernels at their production shapes: checked against float64, then beside eager PyTorch and a copy's bandwidth.

A U-Net's convolutions also beside cuDNN's with the project's own norm behind it, and beside themselves with
programmatic dependent launch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastgen.bench import chains, kernels, suites
from fastgen.bench.contest import Contest, How
from fastgen.bench.environment import copy_bandwidth
from fastgen.bench.results import Results
from fastgen.runtime.device import dtype_name
from fastgen_kernels import OPS, dependent_launch, group_norm
from fastgen_kernels.conv_norm.eager import convolution
from fastgen_kernels.conv_norm.reference import given
from fastgen_kernels.rows import wide_rows

from .stage import Stage

BF16, F32 = torch.bfloat16, torch.float32
# What a case is timed beside, besides eager PyTorch: nothing, its plan of 128-byte rows, or cuDNN and `group_norm`.
NONE, WIDE, CUDNN = "", "rows", "cudnn"
# (operation, case, dtype, what else it is timed beside): what decides first.
HEADLINES = (
    ("reverse_step", "lsun64", BF16, NONE),
    ("reverse_step", "lsun64_ancestral", BF16, NONE),
    ("group_norm", "cifar256", BF16, WIDE),
    ("adain", "vgg16_last", BF16, WIDE),
    ("affine_coupling", "large_sigmoid", F32, NONE),
    ("conv_norm", "cifar32_first", BF16, CUDNN),
    ("conv_norm", "cifar16_first", BF16, CUDNN),
    ("conv_norm", "cifar8_first", BF16, CUDNN),
    ("conv_norm", "cifar4_first", BF16, CUDNN),
    ("conv_norm", "cifar32_up_second", BF16, CUDNN),
    ("conv_norm", "cifar16_up_second", BF16, CUDNN),
    ("conv_norm", "cifar16_qkv", BF16, CUDNN),
    ("conv_norm", "cifar16_grown", BF16, CUDNN),
    ("conv_norm", "cifar_in", BF16, CUDNN),
    ("conv_norm", "cifar32_first_4", BF16, CUDNN),
    ("conv_norm", "lsun8_first", BF16, CUDNN),
    ("conv_norm", "lsun64_second", BF16, CUDNN),
    ("conv_norm", "cifar16_down", BF16, CUDNN),
    ("group_norm", "lsun16", BF16, NONE),
    ("group_norm", "scale_shift64", BF16, WIDE),
    ("reverse_step", "session1", BF16, NONE),
    ("adain", "vgg16", BF16, NONE),
    ("adain", "patchgan64_last", BF16, WIDE),
    ("affine_coupling", "large", F32, NONE),
    ("affine_coupling", "large_last", BF16, NONE),
    ("group_norm", "cifar256_up", BF16, WIDE),
    ("group_norm", "cifar1", BF16, NONE),
    ("reverse_step", "lsun64", F32, NONE),
    ("reverse_step", "lsun64_ancestral", F32, NONE),
    ("adain", "vgg1_last", BF16, WIDE),
    ("adain", "stylegan64", BF16, NONE),
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
            yield (
                f"{name} {small.name}",
                lambda op=op, small=small: beside(
                    op, small, F32, stage, CUDNN if op.name == "conv_norm" else NONE
                ),
            )
        yield "patch_gan batch 1 float32", lambda: chain(stage, 1, F32)
        return
    for i, (name, case, dtype, other) in enumerate(HEADLINES):
        if i == CHAIN_AFTER:
            for batch in CHAIN_BATCHES:
                yield f"patch_gan batch {batch} bfloat16", lambda batch=batch: chain(stage, batch, BF16)
        op = OPS[name]
        yield (
            f"{name} {case} {dtype_name(dtype)}",
            lambda op=op, case=case, dtype=dtype, other=other: beside(op, op.case(case), dtype, stage, other),
        )


def beside(op: Any, case: Any, dtype: torch.dtype, stage: Stage, other: str) -> Contest:
    """A case beside eager PyTorch and `other`."""
    contest = kernels.contest(op, case, dtype, stage.device, ("eager",))
    more: dict[str, Any] = {}
    if other == WIDE:
        more["wide_rows"] = lambda: within(wide_rows, contest.own)
    elif other == CUDNN:
        arguments = case.make(torch.Generator().manual_seed(0), stage.device, dtype)
        more["cudnn_group_norm"] = lambda: lambda: by_cudnn(arguments)
        if stage.device.type == "cuda" and torch.cuda.get_device_capability(stage.device) >= (9, 0):
            more["dependent_launch"] = lambda: within(dependent_launch, contest.own)
    return replace(contest, baselines={**contest.baselines, **more})


def within(context: Callable[[], Any], call: Callable[[], object]) -> Callable[[], object]:
    """`call` within `context`."""

    def inside() -> object:
        with context():
            return call()

    return inside


def by_cudnn(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """conv_norm by cuDNN's convolution, as `cudnn.benchmark` finds it, and `group_norm`: the other fast way."""
    a = given(**arguments)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        raw = convolution(a)
    if a["num_groups"] is None:
        return raw, raw.new_empty(0)
    norm = (a["num_groups"], a["norm_weight"], a["norm_bias"], a["eps"])
    options = {name: a[name] for name in ("skip", "scale", "shift", "act")}
    return raw, group_norm(raw.contiguous(memory_format=torch.channels_last), *norm, **options)


def chain(stage: Stage, batch: int, dtype: torch.dtype) -> Contest:
    """PatchGAN's layers one after the other."""
    how: dict[str, Any] = {"dtypes": [dtype], "against": ("eager",), "batches": [batch]}
    return next(chains.contests(stage.device, **how, size=64 if stage.dry else chains.SIZE))
