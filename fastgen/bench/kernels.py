"""The kernels suite: every production case of every operation, checked, then timed against plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fastgen_kernels import OPS, Case, Op
from fastgen_kernels.op import UNIT_ROUNDOFF

from ..runtime.device import dtype_name
from .contest import Contest, chosen, plain_pytorch
from .environment import cache_bytes
from .results import Row

Outputs = Tensor | Sequence[Tensor]

BASELINES = ("eager", "compile")
# How far a baseline may be from fastgen's judged result, root mean square, in roundings of the output's size. A
# formula in eager PyTorch rounds the result of every operation to the type, where the kernel rounds once; the longest
# (reverse_step) has about 30 operations, and even errors that all add up are then below 32. This finds a baseline that
# computes something else: a missing bias or another order of scale and shift is off by per cents and more, 32 float32
# roundings are 2e-6. In bfloat16 it is 12 %, and finds gross errors only; a formula is the same in both types.
ROUNDINGS = 32.0
TF32 = 2.0**-11  # what float32 products are rounded to on CUDA, where PyTorch's convolutions use tensor cores


def selected(
    ops: Sequence[str], cases: Sequence[str], dtypes: Sequence[torch.dtype], device_type: str
) -> Iterator[tuple[Op, Case, torch.dtype]]:
    """Production cases of `ops` (all where empty), by name where `cases` says so, in `dtypes`.

    The large ones on "cuda" only, unless they are named.
    """
    for name, op in OPS.items():
        if ops and name not in ops:
            continue
        for case in op.cases:
            usual = case.production and (device_type == "cuda" or not case.large)
            if case.name in cases or (usual and not cases):
                for dtype in dtypes:
                    if dtype in case.dtypes:
                        yield op, case, dtype


def contest(
    op: Op, case: Case, dtype: torch.dtype, device: torch.device, against: Sequence[str] = BASELINES
) -> Contest:
    """One case beside its baselines, on the same arguments."""
    arguments = case.make(torch.Generator().manual_seed(0), device, dtype)
    own = op.in_place(**arguments) if op.in_place is not None else partial(op.function, **arguments)
    moved, flops = op.bytes_moved(**arguments), op.flops(**arguments)
    formulas = plain_pytorch(op.eager or op.reference, lambda formula: partial(formula, **arguments), device)
    return Contest(
        row=Row("kernels", op.name, case.name, dtype_name(dtype), bytes=moved, flops=flops),
        own=own,
        result=lambda: op.function(**arguments),
        judge=lambda outputs: max(op.errors(arguments, outputs).values()),
        device=device,
        baselines=chosen(formulas, against),
        agrees=lambda outputs: deviation(outputs, op.function(**arguments), dtype, device),
        captured=True,
    )


def deviation(outputs: Outputs, ours: Outputs, dtype: torch.dtype, device: torch.device) -> float:
    """Worst root-mean-square distance of an output from fastgen's own (which was judged), as a fraction of ROUNDINGS.

    NaN where both have it is memory that the operation hands on; NaN in one of them is inf.
    """
    unit = TF32 if device.type == "cuda" and dtype == torch.float32 else UNIT_ROUNDOFF[dtype]
    pairs = [(value,) if isinstance(value, Tensor) else tuple(value) for value in (outputs, ours)]
    if [value.shape for value in pairs[0]] != [value.shape for value in pairs[1]]:
        return float("inf")
    worst = 0.0
    for value, want in zip(*pairs, strict=True):
        both = value.isnan() & want.isnan()
        size = want.float().masked_fill(both, 0.0).square().mean().sqrt()
        off = (value.float() - want.float()).masked_fill(both, 0.0).square().mean().sqrt()
        if value.numel() and off != 0:
            worst = max(worst, (off / (ROUNDINGS * unit * size)).nan_to_num(nan=float("inf")).item())
    return worst


def copy_share(row: Row, copy: float, device: torch.device) -> float | None:
    """Bytes per second as a share of a copy's; None where tensors stay in a GPU's cache."""
    if row.seconds is None or row.bytes < 2 * cache_bytes(device):
        return None
    return row.bytes / row.seconds.median / copy
