"""What `conv_norm` takes: every argument's shape, type and place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import check
from ..group_norm.reference import LOW_PRECISION
from ..patch_conv.layout import MAX_COUNT, padded
from .reference import sides

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def output_shape(
    x: Tensor, weight: Tensor, stride: int, padding: Sequence[int], upsample: bool
) -> tuple[int, int, int, int]:
    """[B, Cout, OH, OW] of raw."""
    more = sum(padding) - weight.shape[2]
    height, width = ((size * (2 if upsample else 1) + more) // stride + 1 for size in x.shape[2:])
    return x.shape[0], weight.shape[0], height, width


def arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int | Sequence[int] | None,
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
) -> tuple[int, int]:
    """OperandError where an argument is wrong; the padding as (before, after)."""
    check.rank("x", x, 4, "[B, C, H, W]")
    check.dtype("x", x, DTYPES)
    batch, inputs, height, width = x.shape
    device, dtype = x.device, x.dtype
    if beside is not None:
        check.rank("beside", beside, 4, "[B, C', H, W]")
        check.tensor(
            "beside", beside, (batch, beside.shape[1], height, width), (dtype,), device, "[B, C', H, W]"
        )
        inputs += beside.shape[1]
    check.rank("weight", weight, 4, "[Cout, C, k, k]")
    channels, size = weight.shape[0], weight.shape[2]
    if size not in (1, 3):
        check.fail("weight", "a kernel [Cout, C, k, k] of 1x1 or 3x3", list(weight.shape))
    check.tensor("weight", weight, (channels, inputs, size, size), (dtype,), device, "[Cout, C, k, k]")
    if type(stride) is not int or stride not in (1, 2):
        check.fail("stride", "1 or 2", repr(stride))
    ends = _padding(padding, size)
    shape = output_shape(x, weight, stride, ends, upsample)
    if min(shape[2:]) < 1:
        check.fail("x", f"images that a kernel of {size}x{size} fits into", list(x.shape))
    sums = (dtype, torch.float32) if dtype in LOW_PRECISION else (dtype,)
    _vector("bias", bias, channels, sums, device, "[Cout]")
    _shortcut(shortcut, shortcut_weight, shortcut_beside, shape, dtype, device)
    _rows("add", add, (batch, channels), sums, device, "[B, Cout]")
    if residual is not None:
        check.tensor("residual", residual, shape, (dtype,), device, "[B, Cout, OH, OW]")
    _number("output_scale", output_scale, "a finite number, more than 0")
    if num_groups is None:
        for name, value in (("norm_weight", norm_weight), ("norm_bias", norm_bias), ("skip", skip), ("scale", scale),
                            ("shift", shift)):  # fmt: skip
            if value is not None:
                check.fail(name, "None without a norm (num_groups)", "a tensor")
        return ends
    normed = channels
    if skip is not None:
        check.rank("skip", skip, 4, "[B, C2, OH, OW]")
        of = (batch, skip.shape[1], *shape[2:])
        check.tensor("skip", skip, of, (dtype,), device, "[B, C2, OH, OW]")
        normed += skip.shape[1]
    if type(num_groups) is not int or num_groups < 1 or normed % num_groups:
        check.fail("num_groups", f"None or a positive divisor of the {normed} channels", repr(num_groups))
    _number("eps", eps, "a finite number, at least 0", zero=True)
    for name, value in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        _vector(name, value, normed, sums, device, "[Cout + C2]")
    for name, value in (("scale", scale), ("shift", shift)):
        _rows(name, value, (batch, normed), sums, device, "[B, Cout + C2]")
    return ends


def outputs(raw: Tensor, normed: Tensor | None, x: Tensor, shape: tuple[int, ...], wide: int | None) -> None:
    """OperandError unless the caller's buffers can take the result. wide: channels of normed, None without a norm."""
    wanted = [("raw", raw, shape, "[B, Cout, OH, OW]")]
    if wide is None:
        if normed is not None:
            check.fail("normed", "None without a norm (num_groups)", "a tensor")
    else:
        if normed is None:
            check.fail("normed", "a tensor for the norm's result (num_groups is given)", "None")
        wanted.append(("normed", normed, (shape[0], wide, *shape[2:]), "[B, Cout + C2, OH, OW]"))
    for name, value, of, letters in wanted:
        check.tensor(name, value, of, (x.dtype,), x.device, letters)
        if not value.permute(0, 2, 3, 1).is_contiguous():
            check.fail(name, "a channels-last tensor without gaps", f"strides {value.stride()}")


def kernel(x: Tensor, weight: Tensor, beside: Tensor | None, shape: tuple[int, ...]) -> None:
    """OperandError where checked arguments are more than the kernels hold, if not the PyTorch path."""
    if x.dtype == torch.float64:
        check.fail("x", "float32, float16 or bfloat16 in the kernel (or use('reference'))", x.dtype)
    batch, inputs, height, width = x.shape
    inputs += 0 if beside is None else beside.shape[1]
    if max(batch, padded(inputs)) * height * width >= MAX_COUNT:
        check.fail(
            "x", "fewer than 2^30 pixels, and elements an image (channels rounded up to 8s)", list(x.shape)
        )
    if max(batch, padded(shape[1])) * shape[2] * shape[3] >= MAX_COUNT:
        check.fail("x", "a result of fewer than 2^30 pixels, and elements an image", list(shape))
    if len(weight) * padded(inputs) * weight.shape[2] ** 2 >= MAX_COUNT:
        check.fail("weight", "fewer than 2^30 elements (channels rounded up to 8s)", list(weight.shape))


def _padding(padding: int | Sequence[int] | None, size: int) -> tuple[int, int]:
    if padding is not None:
        ends = (padding,) if isinstance(padding, int) else padding
        known = isinstance(ends, (list, tuple)) and all(type(end) is int and 0 <= end < size for end in ends)
        if not known or len(ends) != (1 if isinstance(padding, int) else 2):
            expected = f"None, a number of pixels below {size}, or two: (before, after)"
            check.fail("padding", expected, repr(padding))
    return sides(padding, size)


def _shortcut(
    shortcut: Tensor | None,
    weight: Tensor | None,
    beside: Tensor | None,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if shortcut is None:
        for name, value in (("shortcut_weight", weight), ("shortcut_beside", beside)):
            if value is not None:
                check.fail(name, "None without a shortcut", "a tensor")
        return
    batch, channels, height, width = shape
    inputs = 0
    for name, value in (("shortcut", shortcut), ("shortcut_beside", beside)):
        if value is not None:
            check.rank(name, value, 4, "[B, S, OH, OW]")
            check.tensor(
                name, value, (batch, value.shape[1], height, width), (dtype,), device, "[B, S, OH, OW]"
            )
            inputs += value.shape[1]
    if weight is None:
        check.fail("shortcut_weight", "the weight [Cout, S, 1, 1] of the shortcut", "None")
    check.tensor("shortcut_weight", weight, (channels, inputs, 1, 1), (dtype,), device, "[Cout, S, 1, 1]")


def _vector(
    name: str,
    value: Tensor | None,
    size: int,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    letters: str,
) -> None:
    if value is not None:
        check.tensor(name, value, (size,), dtypes, device, letters)
        check.contiguous(name, value)


def _rows(
    name: str,
    value: Tensor | None,
    size: tuple[int, int],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    letters: str,
) -> None:
    if value is not None:
        check.tensor(name, value, size, dtypes, device, letters)
        if size[1] > 1 and value.stride(1) != 1:
            received = f"strides {value.stride()}: pass {name}.contiguous()"
            check.fail(name, "a tensor whose samples are contiguous", received)


def _number(name: str, value: float, expected: str, zero: bool = False) -> None:
    usual = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usual or value < 0.0 or (value == 0.0 and not zero):
        check.fail(name, expected, repr(value))
