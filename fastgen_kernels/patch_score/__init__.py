"""PatchGAN's last layer and the mean over its patches, which makes one number of a picture. No atomics."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check
from ..op import Budget, Op, differentiate_through, direct, select
from ..patch_conv import check_arguments, refuse_double
from . import cases, reference

__all__ = ["OP", "patch_score"]


def patch_score(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """A picture's score: the mean over patches of the discriminator's last layer, which has one output channel.

    score[b] = mean over (h, w) of conv(x, weight)[b, 0, h, w] + bias, "averaging all responses" (Isola et al. 2017,
    section 3.2.2). The same bits whenever it is called with the same arguments.

    Args:
        x, weight, bias, stride: as for :func:`fastgen_kernels.patch_conv`, with Cout = 1.

    Returns:
        [B] float32 (float64 of a float64 x); patches are not rounded to x's type on the way.

    Raises:
        ValueError: naming the argument, what was expected and what was received.
    """
    check_arguments(x, weight, bias, stride)
    if weight.shape[0] != 1:
        check.fail("weight", f"shape [1, {x.shape[1]}, 4, 4]", list(weight.shape))
    if direct(x.device.type):
        return reference.patch_score(x, weight, bias, stride)
    return torch.ops.fastgen.patch_score(x, weight, bias, stride)


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """The Triton path."""
    refuse_double(x)
    from . import kernel

    return kernel.score(x, weight, bias, stride)


@torch.library.custom_op("fastgen::patch_score", mutates_args=())
def _patch_score(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    run = _fused if select(x.device.type) == "triton" else reference.patch_score
    return run(x, weight, bias, stride)


@_patch_score.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(x.shape[0], dtype=dtype, device=x.device)


differentiate_through(_patch_score, reference.patch_score, wrt=(0, 1, 2))

OP = Op(
    name="patch_score",
    outputs=("score",),
    function=patch_score,
    out=None,
    reference=reference.patch_score,
    fused=_fused,
    overload=torch.ops.fastgen.patch_score.default,
    decomposition=reference.patch_score,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    # The sum over taps keeps the loads of many patches in flight, in few programs: 96 leave room for 21 warps.
    budget=Budget(registers=96),
)
