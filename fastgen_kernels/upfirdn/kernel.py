"""Upsample, FIR, downsample and epilogue in one Triton kernel, bound by memory.

A program makes `ROWS` groups of rows by `BLOCK_P` groups of columns of `BLOCK_C` channels, a group being the `UP`
outputs that lie between two input pixels. The zeros that upsampling would insert are never made: every output of a
group is of a phase, known at compile time, and so is which taps meet a pixel there. The filter is separable: a row of
the input is filtered along its columns once, kept in registers as long as an output needs it, and combined with the
rows around it. Each output then costs T * (ROWS + T - 1) / ROWS loads rather than T * T, in channels-last tensors 16
bytes wide, nearly all of them from the L1 cache.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..adain.plan import VECTOR, power_of_2
from ..adain.reference import memory_format
from .plan import choose_plan
from .reference import output_shape

MOST_REGISTERS = 168  # of a filter's window and weights: three programs of four warps on a multiprocessor


@triton.jit
def _multiple(n, UNIT: tl.constexpr):
    """n, which UNIT divides, so that the compiler knows: by itself it sees multiples of 16 only."""
    return n // UNIT * UNIT


@triton.jit
def _along_columns(
    x,  # the sample's, at the block's first channel
    weights,  # the filter, flipped: a tuple of T scalars
    row,  # of the input; may lie outside
    column,  # int32 [BLOCK_P]: the groups' input pixels
    channel,  # int32 [BLOCK_C], from 0
    known,  # [BLOCK_C]
    height,
    width,
    x_c,
    x_h,
    x_w,
    PHASE: tl.constexpr,
    T: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A row of the input filtered along its columns, at the outputs of one phase: float32 [BLOCK_P, BLOCK_C]."""
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    inside = (row >= 0) & (row < height)
    for k in tl.static_range(T):
        if (PHASE * DOWN - BEFORE + k) % UP == 0:
            at = column + (PHASE * DOWN - BEFORE + k) // UP
            mask = (inside & (at >= 0) & (at < width))[:, None] & known[None, :]
            offset = row * x_h + (at * x_w)[:, None] + (channel * x_c)[None, :]
            total += weights[k] * tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def upfirdn_kernel(
    x,  # [B, C, H, W], any strides
    y,  # [B, C, OH, OW], contiguous or channels-last; x's type
    fir,  # [T], or None where T is 1 and the tap 1
    scale,  # [B, C], rows contiguous, or None
    noise,  # [B or 1, 1, OH, OW], contiguous planes, or None
    noise_weight,  # [C] or [1], or None with noise
    bias,  # [C] or None
    post_scale,  # [B, C], rows contiguous, or None
    channels,  # C
    height,  # H
    width,  # W
    out_height,  # OH
    out_width,  # OW
    row_blocks,  # programs along the rows
    column_blocks,  # ... the columns
    x_b,  # elements from a sample to the next
    x_c,
    x_h,
    x_w,
    scale_b,
    noise_b,  # 0 where all samples share the noise
    weight_c,  # 0 where all channels share its weight
    post_b,
    gain,
    slope,  # LeakyReLU's, or None
    act_gain,
    T: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    BEFORE: tl.constexpr,  # rows and columns of padding
    FIRST: tl.constexpr,  # from a group's input pixel to the first that its outputs need
    SPAN: tl.constexpr,  # input pixels that a group's outputs need, along an axis
    PLANAR: tl.constexpr,  # y is contiguous; else channels-last
    UNIT: tl.constexpr,  # what divides strides, so that accesses are wide
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ROWS: tl.constexpr,
):
    # Grid: B * row_blocks * column_blocks * blocks of channels, neighbours in memory next to each other.
    if PLANAR:
        x_h = _multiple(x_h, UNIT)
        x_c = _multiple(x_c, UNIT)
        out_width = _multiple(out_width, UNIT)
        noise_b = _multiple(noise_b, UNIT)
        y_c = out_height * out_width
        y_h = out_width
        y_w = 1
    else:
        x_h = _multiple(x_h, UNIT)
        x_w = _multiple(x_w, UNIT)
        channels = _multiple(channels, UNIT)
        y_c = 1
        y_h = out_width * channels
        y_w = channels
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    block = program % blocks * BLOCK_C
    program = program // blocks
    column = program % column_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    program = program // column_blocks
    first_row = program % row_blocks * ROWS
    b = (program // row_blocks).to(tl.int64)
    index = tl.arange(0, BLOCK_C)
    channel = block + index
    known = channel < channels
    x += b * _multiple(x_b, UNIT) + block.to(tl.int64) * x_c
    y += b * (channels.to(tl.int64) * out_height * out_width) + block.to(tl.int64) * y_c

    weights = (1.0,)
    if fir is not None:
        weights = (tl.load(fir + (T - 1)).to(tl.float32),)
        for k in tl.static_range(1, T):
            weights = weights + (tl.load(fir + (T - 1 - k)).to(tl.float32),)  # type: ignore[assignment]
    if scale is not None:
        scale = tl.load(scale + b * scale_b + channel, mask=known, other=0.0).to(tl.float32)
    if noise is not None:
        noise += b * noise_b
        noise_weight = tl.load(noise_weight + channel * weight_c, mask=known, other=0.0).to(tl.float32)
    if bias is not None:
        bias = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    if post_scale is not None:
        post_scale = tl.load(post_scale + b * post_b + channel, mask=known, other=0.0).to(tl.float32)

    for c in tl.static_range(UP):  # phases of columns
        out_column = column * UP + c
        visible = out_column < out_width
        # The first row's window of filtered input rows.
        top = first_row * DOWN + FIRST
        window = (
            _along_columns(
                x, weights, top, column * DOWN, index, known, height, width, x_c, x_h, x_w,
                c, T, UP, DOWN, BEFORE, BLOCK_P, BLOCK_C,
            ),
        )  # fmt: skip
        for j in tl.static_range(1, SPAN):
            window = window + (  # type: ignore[assignment]
                _along_columns(
                    x, weights, top + j, column * DOWN, index, known, height, width, x_c, x_h, x_w,
                    c, T, UP, DOWN, BEFORE, BLOCK_P, BLOCK_C,
                ),
            )  # fmt: skip
        for q in tl.static_range(ROWS):
            if q > 0:  # DOWN rows leave the window, as many enter it
                for j in tl.static_range(DOWN):
                    window = window[1:] + (
                        _along_columns(
                            x, weights, top + (q - 1) * DOWN + SPAN + j, column * DOWN, index, known, height, width,
                            x_c, x_h, x_w, c, T, UP, DOWN, BEFORE, BLOCK_P, BLOCK_C,
                        ),
                    )  # fmt: skip
            for a in tl.static_range(UP):  # phases of rows
                out_row = (first_row + q) * UP + a
                v = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
                for k in tl.static_range(T):
                    if (a * DOWN - BEFORE + k) % UP == 0:
                        v += weights[k] * window[(a * DOWN - BEFORE + k) // UP - FIRST]
                v *= gain
                if scale is not None:
                    v *= scale[None, :]
                there = visible & (out_row < out_height)
                if noise is not None:
                    z = tl.load(noise + out_row * out_width + out_column, mask=there, other=0.0)
                    v += z.to(tl.float32)[:, None] * noise_weight[None, :]
                if bias is not None:
                    v += bias[None, :]
                if slope is not None:
                    v = tl.where(v >= 0.0, v, v * slope)
                v *= act_gain
                if post_scale is not None:
                    v *= post_scale[None, :]
                to = out_row * y_h + (out_column * y_w)[:, None] + (index * y_c)[None, :]
                tl.store(y + to, v.to(y.dtype.element_ty), mask=there[:, None] & known[None, :])


def launch(
    x: Tensor,
    filter: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
    gain: float = 1.0,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    act_gain: float = 1.0,
    post_scale: Tensor | None = None,
    layout: torch.memory_format | None = None,
) -> Tensor:
    """Launch the kernel on arguments that `upfirdn` has checked. layout: of the result, x's if None."""
    batch, channels, out_height, out_width = shape = output_shape(x, filter, up, down, padding)
    layout = memory_format(x) if layout is None else layout
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    planar = layout == torch.contiguous_format
    height, width = x.shape[2:]
    x_b, x_c, x_h, x_w = x.stride()
    taps = 1 if filter is None else len(filter)
    before = padding[0]
    if taps == up == down == 1 and padding == (0, 0) and (height == 1 or x_h == width * x_w):
        # Nothing but the epilogue: all pixels are a row.
        height, width, out_height, out_width = 1, height * width, 1, out_height * out_width
        x_h = width * x_w
    plan = choose_plan(
        channels, batch, -(-out_height // up), -(-out_width // up), planar, x.element_size(), taps
    )
    noise_b = noise.stride(0) if noise is not None and len(noise) > 1 else 0
    # Unlike extents are all multiples of what is left.
    unit = math.gcd(VECTOR // x.element_size(), x_b if batch > 1 else 0, x_h if height > 1 else 0)
    unit = math.gcd(unit, *((x_c if channels > 1 else 0, out_width, noise_b) if planar else (x_w, channels)))
    grid = batch * plan.row_blocks * plan.column_blocks * -(-channels // plan.block_c)
    offsets = [(phase * down - before + k) // up for phase in range(up) for k in range(taps)
               if (phase * down - before + k) % up == 0]  # fmt: skip
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        upfirdn_kernel[(grid,)](
            x,
            y,
            filter,
            scale,
            noise,
            noise_weight,
            bias,
            post_scale,
            channels,
            height,
            width,
            out_height,
            out_width,
            plan.row_blocks,
            plan.column_blocks,
            x_b if batch > 1 else 0,
            x_c if channels > 1 else 0,
            x_h if height > 1 else 0,
            x_w,
            0 if scale is None else scale.stride(0),
            noise_b,
            0 if noise_weight is None or len(noise_weight) == 1 else 1,
            0 if post_scale is None else post_scale.stride(0),
            gain,
            None if slope == 1.0 else slope,
            act_gain,
            T=taps,
            UP=up,
            DOWN=down,
            BEFORE=before,
            FIRST=min(offsets),
            SPAN=max(offsets) - min(offsets) + 1,
            PLANAR=planar,
            UNIT=unit,
            BLOCK_C=min(plan.block_c, power_of_2(channels)),
            BLOCK_P=plan.block_p,
            ROWS=plan.rows,
            num_warps=plan.num_warps,
            # Left alone, ptxas spills some bytes of the window for sm_100 to get by with fewer registers.
            maxnreg=MOST_REGISTERS if taps > 1 else None,
            enable_fp_fusion=True,
        )
    return y
