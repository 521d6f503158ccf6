"""A U-Net's convolution and all that follows it up to the next one's input, for small batches: one operation.

cuDNN's convolutions are made for many pixels. One image of 32x32 pixels or less gives them too few tiles for a large
GPU, and leaves bias, embedding, residual and norm to kernels of their own. The maths stands in `reference.py`, how the
work is divided in `plan.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..op import Budget, Op, custom_op, differentiate_through, direct, select
from ..patch_conv.reference import without_autocast
from . import cases, checks, eager, reference

__all__ = ["OP", "conv_norm", "conv_norm_out"]


def conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | Sequence[int] | None = None,
    upsample: bool = False,
    beside: Tensor | None = None,
    shortcut: Tensor | None = None,
    shortcut_weight: Tensor | None = None,
    shortcut_beside: Tensor | None = None,
    add: Tensor | None = None,
    residual: Tensor | None = None,
    output_scale: float = 1.0,
    num_groups: int | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    skip: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> tuple[Tensor, Tensor]:
    """A convolution, what is added to it, and the norm and activation behind it; the map before the norm too.

    raw = (conv(up([x, beside])) + conv1x1([shortcut, shortcut_beside]) + bias + add + residual) / output_scale
    normed = silu(norm([raw, skip]) * (1 + scale) + shift)

    Two calls are a residual block (Ho et al. 2020, appendix B): the first with `add`, the embedding, and the block's
    second norm; the next with `residual` or `shortcut`, and the norm with which the next block begins.

    Args:
        x: [B, C, H, W], float32, float16 or bfloat16 (float64 on the PyTorch path). The kernel reads a channels-last
            x as it lies where its pixels start at multiples of 8 elements (C a multiple of 8, or a slice of such
            pixels), and any x of fewer than 8 channels; it copies another one first. So it does with beside, shortcut
            and shortcut_beside, few channels of them too.
        weight: [Cout, C + C', k, k] typed as x, k 1 or 3; from `pack_weight` it is not copied.
        bias: [Cout], contiguous, or None. Typed as x or float32, as are add and what the norm takes. With a shortcut
            that has a bias of its own, the sum of both.
        stride: 1 or 2.
        padding: pixels of zeros on every side, below k, or (before, after): (0, 1) is right and bottom only, with which
            some networks halve the resolution. None: k // 2.
        upsample: the image is first doubled, by nearest neighbour; nothing is written for it.
        beside: [B, C', H, W] typed as x: stands behind x's channels, as in `torch.cat((x, beside), 1)`, which is not
            made (where C is a multiple of 8).
        shortcut: [B, S, OH, OW] typed as x, with shortcut_weight [Cout, S + S', 1, 1]: a 1x1 convolution whose products
            are added to the same sums.
        shortcut_beside: [B, S', OH, OW] typed as x: stands behind shortcut's channels.
        add: [B, Cout], added to every pixel: an embedding. Its samples may lie apart, as scale's and shift's.
        residual: [B, Cout, OH, OW] typed as x; read as it lies where it is channels-last without gaps.
        output_scale: divides the sum, more than 0 (Song et al. 2021: sqrt(2)).
        num_groups: of the norm; divides Cout + C2. None: no norm.
        norm_weight: [Cout + C2], contiguous, or None for 1; norm_bias: the same, or None for 0.
        eps: added to the variance, at least 0.
        skip: [B, C2, OH, OW] typed as x: stands behind raw's channels in the norm, as the block that follows
            concatenates them. Groups may hold channels of both.
        scale: [B, Cout + C2], the norm's result is multiplied by 1 + scale; shift: [B, Cout + C2], added after that.
        act: SiLU at the end of normed. raw has no activation.

    Returns:
        raw: [B, Cout, OH, OW] typed as x, channels-last.
        normed: [B, Cout + C2, OH, OW] typed as x, channels-last; an empty tensor [0] without a norm.

    Sums are in float32 and rounded once to raw. The norm's statistics are those of raw as it was rounded, so that
    normed is what `group_norm` makes of raw and skip; it is computed in float32 and rounded once. float32 products are
    rounded to TF32 where `torch.backends.cudnn.conv.fp32_precision` is "tf32". The same call gives the same bits; a
    sample's may change with the batch it is in, because the batch decides into how many parts sums are split. Gradients
    flow to all tensors.

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    ends = checks.arguments(
        x, weight, bias, stride, padding, upsample, beside, shortcut, shortcut_weight, shortcut_beside, add, residual,
        output_scale, num_groups, norm_weight, norm_bias, eps, skip, scale, shift,
    )  # fmt: skip
    run = _reference if direct(x.device.type) else torch.ops.fastgen.conv_norm
    return run(
        x, weight, bias, stride, ends, upsample, beside, shortcut, shortcut_weight, shortcut_beside, add, residual,
        float(output_scale), num_groups, norm_weight, norm_bias, float(eps), skip, scale, shift, act,
    )  # fmt: skip


def conv_norm_out(
    raw: Tensor,
    normed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | Sequence[int] | None = None,
    upsample: bool = False,
    beside: Tensor | None = None,
    shortcut: Tensor | None = None,
    shortcut_weight: Tensor | None = None,
    shortcut_beside: Tensor | None = None,
    add: Tensor | None = None,
    residual: Tensor | None = None,
    output_scale: float = 1.0,
    num_groups: int | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    skip: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> None:
    """:func:`conv_norm` into the caller's buffers. No autograd; not for export.

    raw: [B, Cout, OH, OW], normed: [B, Cout + C2, OH, OW] or None without a norm, both typed as x, channels-last
    without gaps, their memory apart from that of all inputs, save that raw may be residual. Parts of sums lie in memory
    that the call allocates.
    """
    ends = checks.arguments(
        x, weight, bias, stride, padding, upsample, beside, shortcut, shortcut_weight, shortcut_beside, add, residual,
        output_scale, num_groups, norm_weight, norm_bias, eps, skip, scale, shift,
    )  # fmt: skip
    shape = checks.output_shape(x, weight, stride, ends, upsample)
    checks.outputs(raw, normed, x, shape, _wide(weight, num_groups, skip))
    if torch.is_grad_enabled() and any(
        value is not None and value.requires_grad for value in (x, weight, raw, normed)
    ):
        check.fail(
            "conv_norm_out",
            "tensors that need no gradient",
            "one that does: call it under torch.no_grad(), or use conv_norm",
        )
    torch.ops.fastgen.conv_norm_out(
        raw, normed, x, weight, bias, stride, ends, upsample, beside, shortcut, shortcut_weight, shortcut_beside, add,
        residual, float(output_scale), num_groups, norm_weight, norm_bias, float(eps), skip, scale, shift, act,
    )  # fmt: skip


def _wide(weight: Tensor, num_groups: int | None, skip: Tensor | None) -> int | None:
    """Channels of normed."""
    return None if num_groups is None else len(weight) + (0 if skip is None else skip.shape[1])


def _reference(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The PyTorch path."""
    return without_autocast(reference.conv_norm, x, *rest)


def _fused(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """The Triton path."""
    given = reference.given(x, weight, *rest, **named)
    raw, normed = _empty(given)
    _launch(raw, normed, given)
    return raw, x.new_empty(0) if normed is None else normed


def _empty(given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Buffers for raw and normed."""
    x, weight = given["x"], given["weight"]
    shape = checks.output_shape(x, weight, given["stride"], given["padding"], given["upsample"])
    wide = _wide(weight, given["num_groups"], given["skip"])

    def last(channels: int) -> Tensor:
        sizes = (shape[0], channels, *shape[2:])
        return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    return last(shape[1]), None if wide is None else last(wide)


def _launch(raw: Tensor, normed: Tensor | None, given: dict[str, Any]) -> None:
    checks.kernel(given["x"], given["weight"], given["beside"], tuple(raw.shape))
    from . import launch

    launch.launch(**given, raw=raw, normed=normed)


@custom_op("conv_norm", tags=(torch.Tag.needs_exact_strides,))
def _conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    upsample: bool,
    beside: Tensor | None,
    shortcut: Tensor | None,
    shortcut_weight: Tensor | None,
    shortcut_beside: Tensor | None,
    add: Tensor | None,
    residual: Tensor | None,
    output_scale: float,
    num_groups: int | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> tuple[Tensor, Tensor]:
    """`conv_norm` on the selected path. Every traced call, and every one on a GPU, ends here."""
    run = _fused if select(x.device.type) == "triton" else _reference
    return run(
        x, weight, bias, stride, padding, upsample, beside, shortcut, shortcut_weight, shortcut_beside, add, residual,
        output_scale, num_groups, norm_weight, norm_bias, eps, skip, scale, shift, act,
    )  # fmt: skip


@_conv_norm.register_fake
def _(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    raw, normed = _empty(reference.given(x, weight, *rest))
    return raw, x.new_empty(0) if normed is None else normed


differentiate_through(_conv_norm, _reference, wrt=(0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 15, 17, 18, 19))


@custom_op("conv_norm_out", mutates_args=("raw", "normed"), tags=(torch.Tag.needs_exact_strides,))
def _conv_norm_out(
    raw: Tensor,
    normed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    upsample: bool,
    beside: Tensor | None,
    shortcut: Tensor | None,
    shortcut_weight: Tensor | None,
    shortcut_beside: Tensor | None,
    add: Tensor | None,
    residual: Tensor | None,
    output_scale: float,
    num_groups: int | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> None:
    """`conv_norm_out` on the selected path."""
    rest = (
        x, weight, bias, stride, padding, upsample, beside, shortcut, shortcut_weight, shortcut_beside, add, residual,
        output_scale, num_groups, norm_weight, norm_bias, eps, skip, scale, shift, act,
    )  # fmt: skip
    if select(x.device.type) == "triton":
        _launch(raw, normed, reference.given(*rest))
        return
    results = _reference(*rest)
    raw.copy_(results[0])
    if normed is not None:
        normed.copy_(results[1])


OP = Op(
    name="conv_norm",
    outputs=("raw", "normed"),
    function=conv_norm,
    out=conv_norm_out,
    reference=reference.conv_norm,
    fused=_fused,
    overload=torch.ops.fastgen.conv_norm.default,
    decomposition=reference.conv_norm,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    eager=eager.conv_norm,
    # The large tile keeps 64 sums a thread and, in float32, finishes them beside addresses of embedding and residual.
    # One image's programs have a multiprocessor each; of 8 warps with 128 registers two would still fit.
    budget=Budget(registers=208),
)
