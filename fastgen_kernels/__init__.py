"""Fused operations for generative models: Triton kernels on CUDA, plain PyTorch elsewhere. Imports no triton.

Every fused operation has one entry in `OPS`, which says everything about it (`op.Op`). `normals` is
a building block of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .noise import STREAMS, normals, signed_seeds
from .op import Budget, Case, Op, select, use
from .reverse_step import OP as _REVERSE_STEP
from .reverse_step import reverse_step, reverse_step_out

OPS: Mapping[str, Op] = {
    "reverse_step": _REVERSE_STEP,
}

__all__ = [
    "OPS",
    "STREAMS",
    "Budget",
    "Case",
    "Op",
    "decompositions",
    "normals",
    "reverse_step",
    "reverse_step_out",
    "select",
    "signed_seeds",
    "use",
]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Custom ops to plain PyTorch, for `exported_program.run_decompositions`."""
    return {op.overload: op.decomposition for op in OPS.values()}
