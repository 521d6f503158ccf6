"""Group normalisation with activation, embedding and concatenation, as U-Nets use it: one operation.

The maths stands in `reference.py`, how the work is divided in `plan.py`.
"""

from __future__ import annotations

import math
import numbers
import operator

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import check
from ..op import Budget, Op, custom_op, differentiate_through, direct, select
from . import cases, cpu, reference

__all__ = ["OP", "group_norm", "group_norm_unchecked"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_ELEMENTS = 2**31  # of a sample, and that it may span in memory: the kernel counts in int32


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> Tensor:
    """silu(norm([x, skip] + add) * (1 + scale) + shift): a residual block's normalisation, in one or two launches.

    The norm is that of Wu & He 2018 (eq. 1-4), as `torch.nn.functional.group_norm`: each sample's channels in
    `num_groups` groups of adjacent ones, each brought to mean 0 and variance 1, then times `weight`, plus `bias`.

    Args:
        x: [B, C1, H, W], float32, float16 or bfloat16 (float64 on the PyTorch path), NCHW or channels-last; may be
            a slice of channels or of samples.
        num_groups: divides C = C1 + C2. 1 is layer norm over the image, C instance norm.
        weight: [C], contiguous, or None for 1. Typed as x or float32, as are the four that follow.
        bias: [C], contiguous, or None for 0.
        eps: added to the variance, at least 0.
        skip: [B, C2, H, W] of x's type and layout: stands behind x's channels, as in `torch.cat((x, skip), 1)`,
            which is not made. Groups may hold channels of both.
        add: [B, C], added to every pixel before the statistics: an embedding that shifts the norm's input. Its
            samples may lie apart, as scale's and shift's: `scale, shift = embedding.chunk(2, 1)` will do.
        scale: [B, C], the norm's result is multiplied by 1 + scale: "scale_shift" residual blocks.
        shift: [B, C], added after that.
        act: SiLU, z / (1 + exp(-z)), at the end.

    Returns:
        [B, C, H, W] in x's dtype and layout, contiguous in it. Computed in float32 (float64 from float64) and
        rounded once. On the Triton path a sample has the same bits in all batches that fill the machine, and in all
        that do not. From the one kind to the other they may change where one launch does all the work:
        channels-last, or NCHW with 48 to 128 KiB of x a group.

    Gradients flow to all tensors.

    Raises:
        OperandError: naming the argument, what was expected and what was received; x and skip of unlike layouts too.
    """
    num_groups, eps = _check(x, num_groups, weight, bias, eps, skip, add, scale, shift)
    return group_norm_unchecked(x, num_groups, weight, bias, eps, skip, add, scale, shift, act)


def group_norm_unchecked(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    """`group_norm` of arguments known to be right: checks take as long as a small image's norm on a CPU."""
    if direct(x.device.type):
        if x.device.type == "cpu" and not _needs_gradient(x, weight, bias, skip, add, scale, shift):
            return cpu.group_norm(x, num_groups, weight, bias, eps, skip, add, scale, shift, act)
        return reference.group_norm(x, num_groups, weight, bias, eps, skip, add, scale, shift, act)
    return torch.ops.fastgen.group_norm(x, num_groups, weight, bias, eps, skip, add, scale, shift, act)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in tensors)


def _check(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[int, float]:
    """OperandError where an argument is wrong; `num_groups` and `eps` as Python's numbers."""
    check.rank("x", x, 4, "[B, C, H, W]")
    check.dtype("x", x, DTYPES)
    batch, channels, height, width = x.shape
    device, dtype = x.device, x.dtype
    # Asking PyTorch first: it is quick, and on CPU a small image's whole norm takes 6 us.
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)) and not any(
        reference.layouts(x)
    ):
        check.fail("x", "NCHW or channels-last (slices of channels too)", f"strides {x.stride()}")
    if skip is not None:
        check.rank("skip", skip, 4, "[B, C2, H, W]")
        check.tensor("skip", skip, (batch, skip.shape[1], height, width), (dtype,), device, "[B, C2, H, W]")
        _check_layouts(x, skip)
        channels += skip.shape[1]
    groups, added = _integer(num_groups), _real(eps)
    if groups is None or groups < 1 or channels % groups:
        check.fail("num_groups", f"a positive divisor of the {channels} channels", repr(num_groups))
    if added is None or not 0.0 <= added < math.inf:
        check.fail("eps", "a finite number, at least 0", repr(eps))
    dtypes = (dtype, torch.float32) if dtype in reference.LOW_PRECISION else (dtype,)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            check.tensor(name, value, (channels,), dtypes, device, "[C]")
            check.contiguous(name, value)
    for name, value in (("add", add), ("scale", scale), ("shift", shift)):
        if value is not None:
            check.tensor(name, value, (batch, channels), dtypes, device, "[B, C]")
            if channels > 1 and value.stride(1) != 1:
                received = f"strides {value.stride()}: pass {name}.contiguous()"
                check.fail(name, "a tensor whose samples are contiguous", received)
    return groups, added


def _integer(value: object) -> int | None:
    if type(value) is int:
        return value
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _real(value: object) -> float | None:
    if type(value) is float:
        return value
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def _check_layouts(x: Tensor, skip: Tensor) -> None:
    for usual in (torch.contiguous_format, torch.channels_last):
        if x.is_contiguous(memory_format=usual) and skip.is_contiguous(memory_format=usual):
            return
    planes, pixels = reference.layouts(x)
    skip_planes, skip_pixels = reference.layouts(skip)
    if not (planes and skip_planes) and not (pixels and skip_pixels):
        names = {(True, False): "NCHW", (False, True): "channels-last"}
        received = names.get((skip_planes, skip_pixels), f"strides {skip.stride()}")
        check.fail(
            "skip", f"x's layout, {names[planes, pixels]}" if planes != pixels else "x's layout", received
        )


@custom_op("group_norm")
def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    """`group_norm` on the selected path. Every traced call, and every one on a GPU, ends here."""
    if select(x.device.type) == "triton":
        return _fused(x, num_groups, weight, bias, eps, skip, add, scale, shift, act)
    run = cpu.group_norm if x.device.type == "cpu" else reference.group_norm
    return run(x, num_groups, weight, bias, eps, skip, add, scale, shift, act)


@_group_norm.register_fake
def _(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    return torch.empty(
        (x.shape[0], channels, *x.shape[2:]),
        dtype=x.dtype,
        device=x.device,
        memory_format=reference.output_format(x, skip),
    )


differentiate_through(_group_norm, reference.group_norm, wrt=(0, 2, 3, 5, 6, 7, 8))


def _check_sizes(x: Tensor, skip: Tensor | None) -> None:
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    if channels * x.shape[2] * x.shape[3] >= MAX_ELEMENTS:
        sample = [channels, *x.shape[2:]]
        check.fail("x", "fewer than 2^31 elements per sample of the result", f"a sample of {sample}")
    for name, value in (("x", x), ("skip", skip)):
        if value is not None:
            extents = zip(value.shape[1:], value.stride()[1:], strict=True)
            if 1 + sum((size - 1) * stride for size, stride in extents) >= MAX_ELEMENTS:
                expected = "a sample that spans fewer than 2^31 elements in memory"
                check.fail(name, expected, f"shape {list(value.shape)}, strides {value.stride()}")


def _fused(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> Tensor:
    if x.dtype == torch.float64:
        check.fail("x", "float32, float16 or bfloat16 on the Triton path", "torch.float64: use('reference')")
    _check_sizes(x, skip)
    from . import kernel

    return kernel.launch(x, num_groups, weight, bias, eps, skip, add, scale, shift, act)


def _eager(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> Tensor:
    """As U-Nets are written: every step in x's type, which rounds 16-bit results several times."""
    v = x if skip is None else torch.cat((x, skip), 1)
    weight, bias, add, scale, shift = (
        None if value is None else value.to(x.dtype) for value in (weight, bias, add, scale, shift)
    )
    if add is not None:
        v = v + add[:, :, None, None]
    y = F.group_norm(v, num_groups, weight, bias, eps)
    if scale is not None:
        y = y * (1.0 + scale)[:, :, None, None]
    if shift is not None:
        y = y + shift[:, :, None, None]
    return F.silu(y) if act else y


OP = Op(
    name="group_norm",
    outputs=("y",),
    function=group_norm,
    out=None,
    reference=reference.group_norm,
    fused=_fused,
    overload=torch.ops.fastgen.group_norm.default,
    decomposition=reference.group_norm,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    # For sm_100, triton 3.6 keeps the addresses on both sides of a concatenation's seam at hand: 80 registers, in a
    # kernel of few programs, where 24 warps a multiprocessor are never reached. Elsewhere all stay within 64.
    budget=Budget(registers=80),
    eager=_eager,
)
