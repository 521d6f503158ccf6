"""Fused operations for generative models: Triton kernels on CUDA, plain PyTorch elsewhere. Imports no triton.

Every fused operation has one entry in `OPS`, which says everything about it (`op.Op`). `normals` is
a building block of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .adain import OP as _ADAIN
from .adain import adain
from .affine_coupling import OP as _AFFINE_COUPLING
from .affine_coupling import affine_coupling, affine_coupling_out
from .conv_norm import OP as _CONV_NORM
from .conv_norm import conv_norm, conv_norm_out
from .group_norm import OP as _GROUP_NORM
from .group_norm import group_norm
from .launching import dependent_launch
from .modulated_conv import OP as _MODULATED_CONV
from .modulated_conv import modulated_conv, weight_energy
from .noise import STREAMS, normals, signed_seeds
from .op import Budget, Case, Op, loaded_kernels, select, use
from .patch_conv import OP as _PATCH_CONV
from .patch_conv import pack_weight, patch_conv
from .patch_score import OP as _PATCH_SCORE
from .patch_score import patch_score
from .reverse_step import OP as _REVERSE_STEP
from .reverse_step import reverse_step, reverse_step_out
from .upfirdn import OP as _UPFIRDN
from .upfirdn import upfirdn

OPS: Mapping[str, Op] = {
    "adain": _ADAIN,
    "affine_coupling": _AFFINE_COUPLING,
    "conv_norm": _CONV_NORM,
    "group_norm": _GROUP_NORM,
    "modulated_conv": _MODULATED_CONV,
    "patch_conv": _PATCH_CONV,
    "patch_score": _PATCH_SCORE,
    "reverse_step": _REVERSE_STEP,
    "upfirdn": _UPFIRDN,
}

__all__ = [
    "OPS",
    "STREAMS",
    "Budget",
    "Case",
    "Op",
    "adain",
    "affine_coupling",
    "affine_coupling_out",
    "conv_norm",
    "conv_norm_out",
    "decompositions",
    "dependent_launch",
    "group_norm",
    "loaded_kernels",
    "modulated_conv",
    "normals",
    "pack_weight",
    "patch_conv",
    "patch_score",
    "reverse_step",
    "reverse_step_out",
    "select",
    "signed_seeds",
    "upfirdn",
    "use",
    "weight_energy",
]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Custom ops to plain PyTorch, for `exported_program.run_decompositions`."""
    return {op.overload: op.decomposition for op in OPS.values()}
