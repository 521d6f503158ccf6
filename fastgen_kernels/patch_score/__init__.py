"""PatchGAN's last layer and the mean over its patches, which makes one number of an image. No atomics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import check
from ..op import Budget, Op, custom_op, differentiate_through, direct, select
from ..patch_conv import check_arguments, check_kernel
from ..patch_conv.eager import dense_weight
from ..patch_conv.reference import PADDING, without_autocast
from . import cases, reference

__all__ = ["OP", "patch_score"]


def patch_score(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """An image's score: the mean over patches of the discriminator's last layer, which has one output channel.

    score[b] = mean over (h, w) of conv(x, weight)[b, 0, h, w] + bias, "averaging all responses" (Isola et al. 2017,
    section 3.2.2). The same bits whenever it is called with the same arguments.

    Args:
        x, weight, bias, stride: as for :func:`fastgen_kernels.patch_conv`, with Cout = 1.

    Returns:
        [B] float32 (float64 of a float64 x); patches are not rounded to x's type on the way.

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    check_arguments(x, weight, bias, stride)
    if weight.shape[0] != 1:
        check.fail("weight", f"shape [1, {x.shape[1]}, 4, 4]", list(weight.shape))
    if direct(x.device.type):
        return _reference(x, weight, bias, stride)
    return torch.ops.fastgen.patch_score(x, weight, bias, stride)


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The PyTorch path."""
    return without_autocast(reference.patch_score, x, weight, bias, stride)


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """The Triton path."""
    check_kernel(x, weight)
    from . import kernel

    return kernel.score(x, weight, bias, stride)


@custom_op("patch_score")
def _patch_score(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    run = _fused if select(x.device.type) == "triton" else _reference
    return run(x, weight, bias, stride)


@_patch_score.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(x.shape[0], dtype=dtype, device=x.device)


differentiate_through(_patch_score, _reference, wrt=(0, 1, 2))


def _eager(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """PyTorch's fastest: in 16 bits it rounds every patch, which the others do not."""
    patches = F.conv2d(x, dense_weight(x, weight), bias, stride, PADDING)
    return patches.mean((1, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


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
    eager=_eager,
    # The sum over taps keeps the loads of many patches in flight, in few programs: 96 leave room for 21 warps.
    budget=Budget(registers=96),
)
