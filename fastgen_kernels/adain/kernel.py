"""Adaptive instance normalisation as Triton kernels, bound by memory.

A tile is a block of channels by a run of pixels, whatever the layout: strides say where it lies, the launch
table which way it is long. Where one tile holds whole planes, one program reads them, takes their statistics
in registers, and writes. Larger channels-last planes, as long as they stay in cache, are read twice by one program.
Else planes are cut into spans: a first kernel leaves each span's statistics, a second combines them in a fixed
order and reads the pixels again.

Statistics are three numbers: `centre` and `rest`, whose sum is the mean, and `m2`, the sum of squared deviations.
The centre is a sum over pixels rounded as float32 rounds it, the rest is what it missed (Chan, Golub and
LeVeque 1983): x - centre is nearly exact, so a large mean costs no digits, and a constant plane comes out as 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rows
from .plan import VECTOR, Plan, choose_plan, power_of_2
from .reference import memory_format, pixel_stride


@triton.jit
def _per_channel(values, channel, known):
    """Values [C] of a block of channels in float32."""
    return tl.load(values + channel, mask=known, other=0.0).to(tl.float32)


@triton.jit
def _two_parts(centre, rest):
    """Their sum as float32 rounds it, and what it missed (Knuth's two-sum)."""
    total = centre + rest
    part = total - centre
    return total, (centre - (total - part)) + (rest - part)


@triton.jit
def _multiple(n, UNIT: tl.constexpr):
    """n, which UNIT divides, so that the compiler knows: by itself it sees multiples of 16 only."""
    return n // UNIT * UNIT


@triton.jit
def _leaky_relu(v, slope):
    """LeakyReLU; v itself where slope is None."""
    if slope is not None:
        v = tl.where(v >= 0.0, v, v * slope)
    return v


@triton.jit
def _content_tile(
    x,  # the block's first channel, at the plane's first pixel
    noise,  # the sample's, or None
    weight,  # float32 [BLOCK_C], of the noise
    bias,  # float32 [BLOCK_C], or None
    row,  # int32 [BLOCK_C], from 0
    column,  # int32 [BLOCK_P], from 0
    known,  # [BLOCK_C]
    first,  # the tile's first pixel
    pixels,  # H * W
    x_c,  # elements from a channel to the next
    x_p,  # elements from a pixel to the next
    slope,  # or None
):
    """What is normalised, float32 [BLOCK_C, BLOCK_P], and where it is real."""
    inside = column < pixels - first
    mask = known[:, None] & inside[None, :]
    at = x + first.to(tl.int64) * x_p + (row * x_c)[:, None] + (column * x_p)[None, :]
    v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if noise is not None:
        z = tl.load(noise + first + column, mask=inside, other=0.0).to(tl.float32)
        v += z[None, :] * weight[:, None]
    if bias is not None:
        v += bias[:, None]
    return _leaky_relu(v, slope), mask


@triton.jit
def _moments(
    x,  # the block's first channel, at the plane's first pixel
    noise,  # the sample's, or None
    weight,  # float32 [BLOCK_C]
    bias,  # float32 [BLOCK_C], or None
    row,
    column,
    known,  # [BLOCK_C]
    begin,  # pixels [begin, stop)
    stop,
    pixels,  # H * W
    x_c,
    x_p,
    slope,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Centre, rest and m2 [BLOCK_C] of channels over a span of whole steps of BLOCK_P * UNROLL pixels.

    Every place of a tile keeps its own by Welford's update, about the first value that it sees; they are merged once.
    """
    centre, _ = _content_tile(x, noise, weight, bias, row, column, known, begin, pixels, x_c, x_p, slope)
    mean = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    m2 = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    seen = 0.0
    for start in range(begin, stop, BLOCK_P * UNROLL):
        for u in tl.static_range(UNROLL):  # independent loads: the compiler issues them together
            first = start + u * BLOCK_P
            v, mask = _content_tile(
                x, noise, weight, bias, row, column, known, first, pixels, x_c, x_p, slope
            )
            v -= centre
            seen += 1.0
            delta = tl.where(mask, v - mean, 0.0)
            mean += delta * (1.0 / seen)
            m2 += delta * (v - mean)
    # A place's pixels are begin + column, + BLOCK_P, ...: places have seen unlike numbers of them.
    count = tl.maximum(stop - begin - column + (BLOCK_P - 1), 0) // BLOCK_P
    count = count.to(tl.float32)[None, :]
    total = (stop - begin).to(tl.float32)
    block_centre = tl.sum(centre * count, 1) / total
    mean += centre - block_centre[:, None]
    rest = tl.sum(mean * count, 1) / total
    apart = mean - rest[:, None]
    block_centre, rest = _two_parts(block_centre, rest)
    return block_centre, rest, tl.sum(m2 + count * apart * apart, 1)


@triton.jit
def _deviations(v, mask, count):
    """Deviations from the mean of `count` pixels a channel, zero where masked; centre, rest and m2 [BLOCK_C]."""
    centre = tl.sum(tl.where(mask, v, 0.0), 1) / count
    d = tl.where(mask, v - centre[:, None], 0.0)
    rest = tl.sum(d, 1) / count
    d = tl.where(mask, d - rest[:, None], 0.0)
    return d, centre, rest, tl.sum(d * d, 1)


@triton.jit
def _combine(
    partials,  # float32 [splits, 3, C], the sample's
    channel,  # int32 [BLOCK_C]
    known,  # [BLOCK_C]
    channels,  # C
    pixels,  # H * W
    splits,  # spans of a plane
    span,  # pixels of a span; the last may have fewer
    SPLITS: tl.constexpr,
):
    """Centre, rest and m2 [BLOCK_C] of planes from those of their spans."""
    # Spans come first, so that with a single channel they are what the threads share.
    s = tl.arange(0, SPLITS)
    mask = (s < splits)[:, None] & known[None, :]
    at = partials + (s * 3 * channels)[:, None] + channel[None, :]
    centre = tl.load(partials + channel, mask=known, other=0.0)
    means = tl.load(at, mask=mask, other=0.0) - centre[None, :] + tl.load(at + channels, mask=mask, other=0.0)
    counts = tl.maximum(tl.minimum(pixels - s * span, span), 0).to(tl.float32)
    rest = tl.sum(tl.where(mask, means * counts[:, None], 0.0), 0) / pixels
    d = means - rest[None, :]
    m2 = tl.load(at + 2 * channels, mask=mask, other=0.0) + tl.where(mask, d * d * counts[:, None], 0.0)
    centre, rest = _two_parts(centre, rest)
    return centre, rest, tl.sum(m2, 0)


@triton.jit
def _span(
    program,  # of B * splits * blocks of channels, neighbours in memory next to each other
    x,
    partials,
    bias,
    noise,
    noise_weight,
    channels,
    pixels,
    splits,
    span,
    x_b,
    x_c,
    x_p,
    noise_b,
    slope,
    PLANAR: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Leave a span's statistics; arguments as `statistics_kernel` has them."""
    if PLANAR:
        pixels, x_c, noise_b = _multiple(pixels, UNIT), _multiple(x_c, UNIT), _multiple(noise_b, UNIT)
    else:
        channels, x_p = _multiple(channels, UNIT), _multiple(x_p, UNIT)
    blocks = tl.cdiv(channels, BLOCK_C)
    split = program // blocks % splits
    b = (program // blocks // splits).to(tl.int64)
    block = program % blocks * BLOCK_C
    row = tl.arange(0, BLOCK_C)
    channel = block + row
    known = channel < channels
    x += b * _multiple(x_b, UNIT) + block.to(tl.int64) * x_c
    if noise is not None:
        noise += b * noise_b
    if noise_weight is not None:
        noise_weight = _per_channel(noise_weight, channel, known)
    if bias is not None:
        bias = _per_channel(bias, channel, known)
    begin = split * span
    centre, rest, m2 = _moments(
        x, noise, noise_weight, bias, row, tl.arange(0, BLOCK_P), known,
        begin, tl.minimum(begin + span, pixels), pixels, x_c, x_p, slope, BLOCK_C, BLOCK_P, UNROLL,
    )  # fmt: skip
    at = partials + (b * splits + split) * 3 * channels + channel
    tl.store(at, centre, mask=known)
    tl.store(at + channels, rest, mask=known)
    tl.store(at + 2 * channels, m2, mask=known)


@triton.jit
def statistics_kernel(
    x,  # [B, C, H, W], any strides that pixels of a channel are evenly spaced in
    partials,  # float32 [B, splits, 3, C]: centre, rest and m2 of each span
    bias,  # [C] or None
    noise,  # [B or 1, 1, H, W], contiguous planes, or None
    noise_weight,  # [C], or None with noise
    channels,  # C
    pixels,  # H * W
    splits,  # spans of a plane
    span,  # pixels of a span; the last may have fewer
    x_b,  # elements from a sample to the next
    x_c,  # ... a channel
    x_p,  # ... a pixel
    noise_b,  # ... a sample of the noise, 0 where all share it
    slope,  # LeakyReLU before, or None
    programs,  # x's; those behind them are the style's
    style,  # [B or 1, C, H', W'], or None
    style_partials,
    style_pixels,
    style_splits,
    style_span,
    style_b,
    style_c,
    style_p,
    PLANAR: tl.constexpr,  # x_p is 1; else x_c
    UNIT: tl.constexpr,  # what divides the strides and, of y, the extents between pixels or channels
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNROLL: tl.constexpr,
    STYLE_PLANAR: tl.constexpr,
    STYLE_UNIT: tl.constexpr,
    STYLE_C: tl.constexpr,
    STYLE_P: tl.constexpr,
    STYLE_UNROLL: tl.constexpr,
):
    # Grid: x's B * splits * blocks of channels, then the style's.
    program = tl.program_id(0)
    if style is None or program < programs:
        _span(
            program, x, partials, bias, noise, noise_weight, channels, pixels, splits, span,
            x_b, x_c, x_p, noise_b, slope, PLANAR, UNIT, BLOCK_C, BLOCK_P, UNROLL,
        )  # fmt: skip
    else:
        _span(
            program - programs, style, style_partials, None, None, None, channels, style_pixels, style_splits,
            style_span, style_b, style_c, style_p, 0, None,
            STYLE_PLANAR, STYLE_UNIT, STYLE_C, STYLE_P, STYLE_UNROLL,
        )  # fmt: skip


@triton.jit
def adain_kernel(
    x,  # [B, C, H, W], any strides that pixels of a channel are evenly spaced in
    y,  # [B, C, H, W], contiguous or channels-last; x's type
    partials,  # float32 [B, splits, 3, C], or None where a program has whole planes
    scale,  # [B, C], any strides, or None
    shift,  # [B, C], any strides, or None
    style_partials,  # float32 [B or 1, style_splits, 3, C], or None; with it scale and shift are None
    bias,  # [C] or None
    noise,  # [B or 1, 1, H, W], contiguous planes, or None
    noise_weight,  # [C], or None with noise
    channels,  # C
    pixels,  # H * W
    splits,  # spans of a plane
    span,  # pixels of a span; the last may have fewer
    x_b,  # elements from a sample to the next
    x_c,  # ... a channel
    x_p,  # ... a pixel
    scale_b,
    scale_c,
    shift_b,
    shift_c,
    noise_b,  # 0 where all samples share the noise
    style_b,  # in style_partials; 0 where all samples share the style
    style_pixels,  # H' * W'
    style_span,  # pixels of a span of the style
    style_splits,
    alpha,
    keep,  # 1 - alpha
    eps,
    freedom,  # float: what m2 is divided by, H * W - correction
    style_freedom,  # ... of the style
    slope_before,  # or None
    slope_after,  # or None
    ON_CHIP: tl.constexpr,  # a tile holds whole planes
    PLANAR: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNROLL: tl.constexpr,
    SPLITS: tl.constexpr,  # power of 2 from splits on
    STYLE_SPLITS: tl.constexpr,
):
    # Grid: B * splits * blocks of channels. The last comes first: what the statistics read last is still in L2.
    if PLANAR:
        pixels, x_c, noise_b = _multiple(pixels, UNIT), _multiple(x_c, UNIT), _multiple(noise_b, UNIT)
    else:
        channels, x_p = _multiple(channels, UNIT), _multiple(x_p, UNIT)
    y_c, y_p = (pixels, 1) if PLANAR else (1, channels)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    split = program // blocks % splits
    b = (program // blocks // splits).to(tl.int64)
    block = program % blocks * BLOCK_C
    row = tl.arange(0, BLOCK_C)
    column = tl.arange(0, BLOCK_P)
    channel = block + row
    known = channel < channels
    x += b * _multiple(x_b, UNIT) + block.to(tl.int64) * x_c
    y += b * channels * pixels + block.to(tl.int64) * y_c
    if noise is not None:
        noise += b * noise_b
    if bias is not None:
        bias = _per_channel(bias, channel, known)
    if noise_weight is not None:
        noise_weight = _per_channel(noise_weight, channel, known)

    gain = tl.full((BLOCK_C,), 1.0, tl.float32)
    offset = tl.zeros((BLOCK_C,), tl.float32)
    if style_partials is not None:
        style_centre, style_rest, style_m2 = _combine(
            style_partials + b * style_b,
            channel,
            known,
            channels,
            style_pixels,
            style_splits,
            style_span,
            STYLE_SPLITS,
        )
        gain = tl.sqrt(style_m2 / style_freedom + eps)
        offset = style_centre + style_rest
    if scale is not None:
        gain = _per_channel(scale + b * scale_b, channel.to(tl.int64) * scale_c, known)
    if shift is not None:
        offset = _per_channel(shift + b * shift_b, channel.to(tl.int64) * shift_c, known)

    # alpha * (gain * d / std + offset) + (1 - alpha) * (d + mean), as one factor and one term a channel.
    begin = split * span
    if ON_CHIP:
        v, mask = _content_tile(
            x, noise, noise_weight, bias, row, column, known, begin, pixels, x_c, x_p, slope_before
        )
        d, centre, rest, m2 = _deviations(v, mask, pixels * 1.0)
        gain = alpha * (gain * tl.rsqrt(m2 / freedom + eps)) + keep
        offset = alpha * offset + keep * (centre + rest)
        out = d * gain[:, None] + offset[:, None]
        out = _leaky_relu(out, slope_after)
        at = y + (row * y_c)[:, None] + (column * y_p)[None, :]
        tl.store(at, out.to(y.dtype.element_ty), mask=mask)
    else:
        if partials is None:
            centre, rest, m2 = _moments(
                x, noise, noise_weight, bias, row, column, known, begin, pixels, pixels, x_c, x_p, slope_before,
                BLOCK_C, BLOCK_P, UNROLL,
            )  # fmt: skip
        else:
            centre, rest, m2 = _combine(
                partials + b * splits * 3 * channels, channel, known, channels, pixels, splits, span, SPLITS
            )
        gain = alpha * (gain * tl.rsqrt(m2 / freedom + eps)) + keep
        offset = alpha * offset + keep * (centre + rest) - rest * gain
        # Of a column in cache half as many loads are enough, and leave registers for two programs a multiprocessor.
        STEP: tl.constexpr = BLOCK_P * UNROLL // (2 if partials is None else 1)
        column = tl.arange(0, STEP)
        steps = tl.cdiv(tl.minimum(span, pixels - begin), STEP)
        for i in range(steps):
            first = begin + (steps - 1 - i) * STEP
            v, mask = _content_tile(
                x, noise, noise_weight, bias, row, column, known, first, pixels, x_c, x_p, slope_before
            )
            out = (v - centre[:, None]) * gain[:, None] + offset[:, None]
            out = _leaky_relu(out, slope_after)
            at = y + first.to(tl.int64) * y_p + (row * y_c)[:, None] + (column * y_p)[None, :]
            tl.store(at, out.to(y.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class _Map:
    """Content or style as the kernels take it."""

    x: Tensor
    plan: Plan
    planar: bool
    unit: int

    @classmethod
    def of(cls, x: Tensor, column: bool = True, noise_b: int = 0) -> _Map:
        channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
        # Single pixels are channels in a row, whatever their strides say.
        planar = memory_format(x) == torch.contiguous_format and pixels > 1
        plan = choose_plan(channels, pixels, planar, x.element_size(), column, rows.wide.get())
        b, c, p = _strides(x)
        unit = math.gcd(VECTOR // x.element_size(), b, *((c, pixels, noise_b) if planar else (p, channels)))
        return cls(x, plan, planar, unit)

    @property
    def pixels(self) -> int:
        return self.x.shape[2] * self.x.shape[3]

    @property
    def programs(self) -> int:
        return self.x.shape[0] * self.plan.programs(self.x.shape[1])

    def partials(self) -> Tensor:
        size = (self.x.shape[0], self.plan.splits, 3, self.x.shape[1])
        return torch.empty(size, dtype=torch.float32, device=self.x.device)

    @property
    def options(self) -> dict[str, int | bool]:
        plan = self.plan
        return {
            "PLANAR": self.planar,
            "UNIT": self.unit,
            "BLOCK_C": plan.block_c,
            "BLOCK_P": plan.block_p,
            "UNROLL": plan.unroll,
        }


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Elements from a sample, a channel and a pixel of x to the next; 0 from a single sample."""
    return x.stride(0) if x.shape[0] > 1 else 0, x.stride(1), pixel_stride(x)


def _statistics(
    content: _Map,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    noise_b: int = 0,
    slope: float | None = None,
    style: _Map | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Statistics [B, splits, 3, C] of the spans of both maps' planes, in one launch."""
    partials = content.partials()
    style_partials, programs = None, content.programs
    second: tuple[Any, ...] = (None,) * 8
    names = ("STYLE_PLANAR", "STYLE_UNIT", "STYLE_C", "STYLE_P", "STYLE_UNROLL")
    options = dict.fromkeys(names, 0)
    if style is not None:
        style_partials, programs = style.partials(), programs + style.programs
        plan = style.plan
        second = (style.x, style_partials, style.pixels, plan.splits, plan.span, *_strides(style.x))
        options = dict(zip(names, style.options.values(), strict=True))
    statistics_kernel[(programs,)](
        content.x,
        partials,
        bias,
        noise,
        noise_weight,
        content.x.shape[1],
        content.pixels,
        content.plan.splits,
        content.plan.span,
        *_strides(content.x),
        noise_b,
        slope,
        content.programs,
        *second,
        **content.options,
        **options,
        num_warps=content.plan.num_warps,
        enable_fp_fusion=True,
    )
    return partials, style_partials


def launch(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    style: Tensor | None,
    alpha: float,
    eps: float,
    correction: int,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    slope_before: float,
    slope_after: float,
) -> Tensor:
    """Launch the kernels on arguments that `adain` has checked."""
    batch, channels, height, width = x.shape
    pixels = height * width
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    noise_b = noise.stride(0) if noise is not None and noise.shape[0] > 1 else 0
    content = _Map.of(x, noise_b=noise_b)
    plan = content.plan
    before, after = (None if slope == 1.0 else slope for slope in (slope_before, slope_after))
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        partials = style_partials = None
        styled = None if style is None else _Map.of(style, column=False)
        if plan.splits > 1:
            partials, style_partials = _statistics(
                content, bias, noise, noise_weight, noise_b, before, styled
            )
        elif styled is not None:
            style_partials, _ = _statistics(styled)
        style_plan, style_pixels = (plan, 1) if styled is None else (styled.plan, styled.pixels)
        adain_kernel[(content.programs,)](
            x,
            y,
            partials,
            scale,
            shift,
            style_partials,
            bias,
            noise,
            noise_weight,
            channels,
            pixels,
            plan.splits,
            plan.span,
            *_strides(x),
            *((0, 0) if scale is None else scale.expand(batch, channels).stride()),
            *((0, 0) if shift is None else shift.expand(batch, channels).stride()),
            noise_b,
            style_partials.stride(0) if style_partials is not None and len(style_partials) > 1 else 0,
            style_pixels,
            style_plan.span,
            style_plan.splits,
            alpha,
            1.0 - alpha,
            eps,
            float(max(pixels - correction, 1)),
            float(max(style_pixels - correction, 1)),
            before,
            after,
            ON_CHIP=plan.on_chip,
            **content.options,
            SPLITS=power_of_2(plan.splits),
            STYLE_SPLITS=power_of_2(style_plan.splits),
            num_warps=plan.num_warps,
            enable_fp_fusion=True,
        )
    return y
