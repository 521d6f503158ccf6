"""Adaptive instance normalisation as Triton kernels, bound by memory.

A tile is a block of channels by a run of pixels, whatever the layout: strides say where it lies, the launch
table which way it is long. Where one tile holds whole planes, one program reads them, takes their statistics
in registers, and writes. Else planes are cut into spans: a first kernel leaves each span's statistics, a
second combines them in a fixed order and reads the pixels again.

Statistics are three numbers: `centre` and `rest`, whose sum is the mean, and `m2`, the sum of squared deviations.
The centre is a sum over pixels rounded as float32 rounds it, the rest is what it missed (Chan, Golub and
LeVeque 1983): x - centre is nearly exact, so a large mean costs no digits, and a constant plane comes out as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import memory_format, pixel_stride


@triton.jit
def _per_channel(values, channel, known):
    """Values [C] of a block of channels in float32, zeros where there are none."""
    out = tl.zeros(channel.shape, tl.float32)
    if values is not None:
        out = tl.load(values + channel, mask=known, other=0.0).to(tl.float32)
    return out


@triton.jit
def _content_tile(
    x,  # the tile's first element
    noise,  # the tile's first pixel, or None
    weight,  # float32 [BLOCK_C], of the noise
    bias,  # float32 [BLOCK_C]
    row,  # int32 [BLOCK_C], from 0
    column,  # int32 [BLOCK_P], from 0
    mask,  # [BLOCK_C, BLOCK_P]
    left,  # pixels from the tile's first on
    x_c,  # elements from a channel to the next
    x_p,  # elements from a pixel to the next
    slope,
):
    """What is normalised, float32 [BLOCK_C, BLOCK_P]."""
    v = tl.load(x + (row * x_c)[:, None] + (column * x_p)[None, :], mask=mask, other=0.0).to(tl.float32)
    if noise is not None:
        z = tl.load(noise + column, mask=column < left, other=0.0).to(tl.float32)
        v += z[None, :] * weight[:, None]
    v += bias[:, None]
    return tl.where(v >= 0.0, v, v * slope)


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
    return centre, rest, tl.sum(m2, 0)


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
    tiles,  # tiles of a span; the last span may have fewer
    x_b,  # elements from a sample to the next
    x_c,  # ... a channel
    x_p,  # ... a pixel
    noise_b,  # ... a sample of the noise, 0 where all share it
    slope,  # LeakyReLU before
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    # Grid: B * splits * blocks of channels, neighbours in memory next to each other.
    blocks = tl.cdiv(channels, BLOCK_C)
    split = tl.program_id(0) // blocks % splits
    b = (tl.program_id(0) // blocks // splits).to(tl.int64)
    block = tl.program_id(0) % blocks * BLOCK_C
    row = tl.arange(0, BLOCK_C)
    column = tl.arange(0, BLOCK_P)
    channel = block + row
    known = channel < channels
    x += b * x_b + block.to(tl.int64) * x_c
    if noise is not None:
        noise += b * noise_b
    bias_values = _per_channel(bias, channel, known)
    weight = _per_channel(noise_weight, channel, known)

    centre = tl.zeros((BLOCK_C,), tl.float32)
    rest = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    begin = split * tiles * BLOCK_P
    used = tl.cdiv(tl.minimum(tiles * BLOCK_P, pixels - begin), BLOCK_P)
    for i in range(used):
        first = begin + i * BLOCK_P
        left = pixels - first
        mask = known[:, None] & (column < left)[None, :]
        at = x + first.to(tl.int64) * x_p
        z = None if noise is None else noise + first
        v = _content_tile(at, z, weight, bias_values, row, column, mask, left, x_c, x_p, slope)
        count = tl.minimum(left, BLOCK_P).to(tl.float32)
        before = (i * BLOCK_P) * 1.0
        _, tile_centre, tile_rest, tile_m2 = _deviations(v, mask, count)
        # Chan, Golub and LeVeque 1983, eq. 2.1, about the first tile's centre.
        centre = tl.where(i == 0, tile_centre, centre)
        delta = (tile_centre - centre) + (tile_rest - rest)
        share = count / (before + count)
        rest += delta * share
        m2 += tile_m2 + delta * delta * (before * share)

    at = partials + (b * splits + split) * 3 * channels + channel
    tl.store(at, centre, mask=known)
    tl.store(at + channels, rest, mask=known)
    tl.store(at + 2 * channels, m2, mask=known)


@triton.jit
def adain_kernel(
    x,  # [B, C, H, W], any strides that pixels of a channel are evenly spaced in
    y,  # [B, C, H, W], contiguous or channels-last; x's type
    partials,  # float32 [B, splits, 3, C], or None where a tile holds whole planes
    scale,  # [B, C], any strides, or None
    shift,  # [B, C], any strides, or None
    style_partials,  # float32 [B or 1, style_splits, 3, C], or None; with it scale and shift are None
    bias,  # [C] or None
    noise,  # [B or 1, 1, H, W], contiguous planes, or None
    noise_weight,  # [C], or None with noise
    channels,  # C
    pixels,  # H * W
    splits,  # spans of a plane
    tiles,  # tiles of a span; the last span may have fewer
    x_b,  # elements from a sample to the next
    x_c,  # ... a channel
    x_p,  # ... a pixel
    y_c,
    y_p,
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
    slope_before,
    slope_after,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    SPLITS: tl.constexpr,  # power of 2 from splits on
    STYLE_SPLITS: tl.constexpr,
):
    # Grid: B * splits * blocks of channels. The last comes first: what the statistics read last is still in L2.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    split = program // blocks % splits
    b = (program // blocks // splits).to(tl.int64)
    block = program % blocks * BLOCK_C
    row = tl.arange(0, BLOCK_C)
    column = tl.arange(0, BLOCK_P)
    channel = block + row
    known = channel < channels
    x += b * x_b + block.to(tl.int64) * x_c
    y += b * channels * pixels + block.to(tl.int64) * y_c
    if noise is not None:
        noise += b * noise_b
    bias_values = _per_channel(bias, channel, known)
    weight = _per_channel(noise_weight, channel, known)

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
    if partials is None:
        mask = known[:, None] & (column < pixels)[None, :]
        v = _content_tile(x, noise, weight, bias_values, row, column, mask, pixels, x_c, x_p, slope_before)
        d, centre, rest, m2 = _deviations(v, mask, pixels * 1.0)
        gain = alpha * (gain * tl.rsqrt(m2 / freedom + eps)) + keep
        offset = alpha * offset + keep * (centre + rest)
        out = d * gain[:, None] + offset[:, None]
        out = tl.where(out >= 0.0, out, out * slope_after)
        at = y + (row * y_c)[:, None] + (column * y_p)[None, :]
        tl.store(at, out.to(y.dtype.element_ty), mask=mask)
    else:
        span = tiles * BLOCK_P
        centre, rest, m2 = _combine(
            partials + b * splits * 3 * channels, channel, known, channels, pixels, splits, span, SPLITS
        )
        gain = alpha * (gain * tl.rsqrt(m2 / freedom + eps)) + keep
        offset = alpha * offset + keep * (centre + rest)
        begin = split * span
        used = tl.cdiv(tl.minimum(span, pixels - begin), BLOCK_P)
        for i in range(used):
            first = begin + (used - 1 - i) * BLOCK_P
            left = pixels - first
            mask = known[:, None] & (column < left)[None, :]
            at = x + first.to(tl.int64) * x_p
            z = None if noise is None else noise + first
            v = _content_tile(at, z, weight, bias_values, row, column, mask, left, x_c, x_p, slope_before)
            out = ((v - centre[:, None]) - rest[:, None]) * gain[:, None] + offset[:, None]
            out = tl.where(out >= 0.0, out, out * slope_after)
            at = y + first.to(tl.int64) * y_p + (row * y_c)[:, None] + (column * y_p)[None, :]
            tl.store(at, out.to(y.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Tile:
    """A tile of channels by pixels, and the warps that share it: 16 or 32 elements a thread."""

    channels: int
    pixels: int
    num_warps: int


# A plane of a tile's pixels or fewer is kept in registers. Which tile, and how often a plane is split, depends on
# the plane alone, so that a sample's bits are the same in any batch.
PLANAR = (
    Tile(64, 16, 2),  # up to 4x4: planes follow each other, 1024 elements make full lines
    Tile(16, 64, 2),  # 8x8
    Tile(4, 256, 2),  # 16x16
    Tile(1, 1024, 2),  # 32x32: 2 warps, so that a batch of one still has as many programs as channels
    Tile(1, 2048, 4),
    Tile(1, 4096, 8),  # 64x64
    Tile(1, 8192, 16),
    Tile(1, 16384, 16),  # 128x128: 32 elements a thread, two programs on a multiprocessor: the last that fits
)
CHANNELS_LAST = (
    Tile(64, 16, 2),  # 4x4: 128-byte lines of half-precision channels
    Tile(32, 64, 4),  # 8x8: 64 bytes, two sectors, are enough for memory and give twice the programs
    Tile(32, 256, 8),  # 16x16
    Tile(32, 512, 16),
    # 32x32: a sector of 32 bytes, whose line's others neighbours fetch at that time; 16 elements a thread, since
    # with 32 some compilers run out of registers.
    Tile(16, 1024, 32),
)


@dataclass(frozen=True)
class Split:
    """How larger planes are cut: into spans of whole tiles."""

    tile: Tile
    programs: int  # wanted for a sample: enough to fill an H200's 132 multiprocessors at batch 1
    most: int  # spans of a plane: every program of the second kernel reads the statistics of them all


PLANAR_SPLIT = Split(Tile(1, 4096, 8), programs=512, most=128)  # four programs fit a multiprocessor
# A span's statistics are as many as its channels: 32 x 64 x 3 floats beside 1,024 pixels of 32 channels of a 64-channel
# 256x256 picture. More spans would cost more than they bring.
CHANNELS_LAST_SPLIT = Split(Tile(32, 256, 8), programs=128, most=64)


@dataclass(frozen=True)
class Plan:
    """The launch for planes of one size."""

    block_c: int
    block_p: int
    num_warps: int
    splits: int = 1
    tiles: int = 1

    @property
    def on_chip(self) -> bool:
        """Whether one tile holds whole planes."""
        return self.splits * self.tiles == 1

    @property
    def span(self) -> int:
        """Pixels of a span."""
        return self.tiles * self.block_p


def choose_plan(channels: int, pixels: int, planar: bool) -> Plan:
    """The plan for planes of `pixels` pixels in samples of `channels` channels."""
    for tile in PLANAR if planar else CHANNELS_LAST:
        if pixels <= tile.pixels:
            return Plan(min(tile.channels, triton.next_power_of_2(channels)), tile.pixels, tile.num_warps)
    split = PLANAR_SPLIT if planar else CHANNELS_LAST_SPLIT
    block_c = min(split.tile.channels, triton.next_power_of_2(channels))
    block_p = split.tile.channels * split.tile.pixels // block_c
    needed = triton.cdiv(pixels, block_p)
    spans = min(needed, split.most, max(split.programs // triton.cdiv(channels, block_c), 1))
    tiles = triton.cdiv(needed, spans)
    return Plan(block_c, block_p, split.tile.num_warps, triton.cdiv(needed, tiles), tiles)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Elements from a sample, a channel and a pixel of x to the next."""
    return x.stride(0), x.stride(1), pixel_stride(x)


def _plan_of(x: Tensor) -> Plan:
    pixels = x.shape[2] * x.shape[3]
    # Single pixels are channels in a row, whatever their strides say.
    planar = memory_format(x) == torch.contiguous_format and pixels > 1
    return choose_plan(x.shape[1], pixels, planar)


def _statistics(
    x: Tensor,
    plan: Plan,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    """Statistics [B, splits, 3, C] of the spans of x's planes."""
    batch, channels, height, width = x.shape
    partials = torch.empty((batch, plan.splits, 3, channels), dtype=torch.float32, device=x.device)
    statistics_kernel[(batch * plan.splits * triton.cdiv(channels, plan.block_c),)](
        x,
        partials,
        bias,
        noise,
        noise_weight,
        channels,
        height * width,
        plan.splits,
        plan.tiles,
        *_strides(x),
        noise.stride(0) if noise is not None and noise.shape[0] > 1 else 0,
        slope,
        BLOCK_C=plan.block_c,
        BLOCK_P=plan.block_p,
        num_warps=plan.num_warps,
        enable_fp_fusion=True,
    )
    return partials


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
    plan = _plan_of(x)
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        partials = style_partials = None
        if not plan.on_chip:
            partials = _statistics(x, plan, bias, noise, noise_weight, slope_before)
        style_plan, style_pixels = plan, 1
        if style is not None:
            style_plan, style_pixels = _plan_of(style), style.shape[2] * style.shape[3]
            style_partials = _statistics(style, style_plan)
        adain_kernel[(batch * plan.splits * triton.cdiv(channels, plan.block_c),)](
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
            plan.tiles,
            *_strides(x),
            *_strides(y)[1:],
            *((0, 0) if scale is None else scale.expand(batch, channels).stride()),
            *((0, 0) if shift is None else shift.expand(batch, channels).stride()),
            noise.stride(0) if noise is not None and noise.shape[0] > 1 else 0,
            style_partials.stride(0) if style_partials is not None and len(style_partials) > 1 else 0,
            style_pixels,
            style_plan.span,
            style_plan.splits,
            alpha,
            1.0 - alpha,
            eps,
            float(max(pixels - correction, 1)),
            float(max(style_pixels - correction, 1)),
            slope_before,
            slope_after,
            BLOCK_C=plan.block_c,
            BLOCK_P=plan.block_p,
            SPLITS=triton.next_power_of_2(plan.splits),
            STYLE_SPLITS=triton.next_power_of_2(style_plan.splits),
            num_warps=plan.num_warps,
            enable_fp_fusion=True,
        )
    return y
