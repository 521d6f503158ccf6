"""How `conv_norm` launches its kernels: what is read as it lies, what is copied, and by which plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import launching
from ..group_norm import kernel as norm_kernel
from ..group_norm.reference import output_format
from ..patch_conv.kernel import ready
from ..patch_conv.layout import GROUP, group_strides, input_precision, is_ready, pack_weight, padded
from .kernel import QUAD, finish_kernel, product_kernel
from .plan import Plan, choose, finish

MAX_SPAN = 2**31  # elements that int32 counts


@dataclass(frozen=True)
class Input:
    """One input of the product, as the kernel reads it.

    taps: of its kernel. few: it has so few channels that it is read value by value, whatever its strides.
    """

    tensor: Tensor
    taps: int
    few: bool = False

    def span(self) -> int:
        """Elements from the first to the last."""
        return 1 + sum(
            (n - 1) * stride for n, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True)
        )

    def sizes(self, step: int) -> tuple[int, ...]:
        """Channels, steps of a tap, strides."""
        channels = self.tensor.shape[1]
        strides = group_strides(self.tensor)
        if self.few:
            sample, _, row, column = self.tensor.stride()
            strides = sample, row, column
        return channels, -(-padded(channels) // step), *strides


def inputs(x: Tensor, beside: Tensor | None, taps: int, few: bool) -> tuple[Input, Input | None]:
    """x and beside ready to be read: one tensor where the second would not begin at a multiple of 8 channels.

    few: whether x may be read value by value.
    """
    if beside is not None and x.shape[1] % GROUP:
        x, beside = torch.cat((x, beside), 1), None
    few = few and beside is None and x.shape[1] < GROUP and not is_ready(x)
    first = Input(x, taps, True) if few else Input(ready(x), taps)
    return first, None if beside is None else Input(ready(beside), taps)


def launch(
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
    raw: Tensor,
    normed: Tensor | None,
) -> None:
    """Write raw, and normed where there is a norm, of checked arguments."""
    taps = weight.shape[2] * weight.shape[3]
    main = inputs(x, beside, taps, few=True)
    short = (None, None) if shortcut is None else inputs(shortcut, shortcut_beside, 1, few=False)
    batch, channels, out_height, out_width = raw.shape
    pixels = out_height * out_width
    precision = input_precision(x.dtype)
    terms = tuple((one.taps, padded(one.tensor.shape[1])) for one in (*main, *short) if one is not None)
    tensor_cores = x.dtype != torch.float32 or precision == "tf32"
    plan = choose(batch * pixels, channels, terms, x.element_size(), tensor_cores, num_groups is not None)
    wide = channels + (0 if skip is None else skip.shape[1])
    group = None if num_groups is None else wide // num_groups
    block = finish(pixels, group, plan.splits)
    fused_norm = num_groups is not None and plan.splits > 1 and block is not None
    if plan.splits > 1 and block is None:
        block = finish(pixels, None, plan.splits)
    residual = None if residual is None else _dense(residual)
    factor = 1.0 / output_scale
    add_row, scale_row, shift_row = (0 if value is None else value.stride(0) for value in (add, scale, shift))
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        direct = plan.splits == 1
        size = plan.splits * -(-channels // QUAD) * QUAD * batch * pixels
        out = raw if direct else torch.empty(size, dtype=torch.float32, device=x.device)
        after = (bias, add, residual) if direct else (None, None, None)
        _product(main, weight, short, shortcut_weight, after, out, raw, factor, add_row, stride, padding[0], upsample,
                 precision, plan, terms)  # fmt: skip
        if not direct:
            assert block is not None
            norm = (norm_weight, norm_bias, scale, shift) if fused_norm else (None,) * 4
            behind = None if skip is None or not fused_norm else _dense(skip)
            each = group if fused_norm else block.channels
            assert each is not None
            blocks = -(-(wide if fused_norm else channels) // each) * -(-pixels // block.pixels)
            pdl = launching.dependent.get()
            finish_kernel[(blocks, batch)](
                out, bias, add, residual, behind, *norm, raw, normed if fused_norm else None, factor, eps,
                pixels, batch * pixels, add_row, scale_row, shift_row,
                C=channels, C_SKIP=wide - channels if fused_norm else 0, D=each, SPLITS=plan.splits, ACT=act, PDL=pdl,
                AT_ONCE=block.parts, PIXELS=block.pixels, CHANNELS=block.channels, num_warps=block.num_warps,
                enable_fp_fusion=True, launch_pdl=pdl,
            )  # fmt: skip
    if num_groups is not None and not fused_norm:
        assert normed is not None
        behind = None if skip is None else _dense(skip).permute(0, 3, 1, 2)
        # One channel or one pixel is NCHW as well, and then the norm's result is.
        same = output_format(raw, behind) == torch.channels_last or normed.is_contiguous()
        y = norm_kernel.launch(
            raw,
            num_groups,
            norm_weight,
            norm_bias,
            eps,
            behind,
            None,
            scale,
            shift,
            act,
            normed if same else None,
        )
        if not same:
            normed.copy_(y)


def _product(
    main: tuple[Input, Input | None],
    weight: Tensor,
    short: tuple[Input | None, Input | None],
    shortcut_weight: Tensor | None,
    after: tuple[Tensor | None, Tensor | None, Tensor | None],
    out: Tensor,
    raw: Tensor,
    factor: float,
    add_row: int,
    stride: int,
    before: int,
    upsample: bool,
    precision: str,
    plan: Plan,
    terms: tuple[tuple[int, int], ...],
) -> None:
    """Launch product_kernel. after: bias, add and residual, where it is to finish its sums itself."""
    tile, step = plan.tile, plan.step
    batch, channels, out_height, out_width = raw.shape
    pixels = batch * out_height * out_width
    weight = pack_weight(weight)
    short_weight = None if shortcut_weight is None else pack_weight(shortcut_weight)
    first, _ = main
    taken = [(None, (0,) * 5) if one is None else (one.tensor, one.sizes(step)) for one in (*main, *short)]
    (x, x_sizes), (beside, beside_sizes), (shortcut, shortcut_sizes), (shortcut_beside, more_sizes) = taken
    assert x is not None
    wide = padded(weight.shape[1]) // GROUP
    grid = (plan.tiles(pixels, channels), plan.splits)
    unit, add_unit = math.gcd(channels, GROUP), math.gcd(add_row, GROUP)
    far = any(one is not None and one.span() >= MAX_SPAN for one in (*main, *short))
    pdl = launching.dependent.get()
    product_kernel[grid](
        x, beside, weight, shortcut, shortcut_beside, short_weight, *after, out, factor,
        pixels, channels // unit, *x.shape[2:], out_height, out_width, plan.splits,
        sum(taps * -(-width // step) for taps, width in terms), before,
        *x_sizes, first.tensor.stride(1), wide * weight.shape[2] * weight.shape[3], wide,
        *beside_sizes, *shortcut_sizes, 0 if short_weight is None else padded(short_weight.shape[1]) // GROUP,
        *more_sizes, add_row // add_unit,
        K=weight.shape[2], STRIDE=stride, UPSAMPLE=upsample, FEW=first.few, FAR=far,
        RAGGED=any(width % step for _, width in terms),
        HOLES=any(one is not None and one.tensor.shape[1] % GROUP for one in (*main, *short)),
        UNIT=unit, ADD_UNIT=add_unit, PARTS=plan.splits > 1, PDL=pdl, PRECISION=precision,
        BM=tile.channels, BN=tile.pixels, BK=step,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True, launch_pdl=pdl,
    )  # fmt: skip


def _dense(tensor: Tensor) -> Tensor:
    """`tensor` [B, C, H, W] as [B, H, W, C] without gaps: itself, or a copy."""
    return tensor.permute(0, 2, 3, 1).contiguous()
