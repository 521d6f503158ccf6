"""Group normalisation as Triton kernels: one launch where a program's groups stay in cache, else two.

A program takes whole groups of channels (or a part of a large one) and a run of pixels. Its tile is [pixels,
channels] in both layouts; which axis is contiguous decides how threads are laid over it. Statistics are kept a
channel and a thread by Welford's update, and merged over threads, channels and splits by Chan's formula, always in the
same order and without atomics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rows
from .plan import VECTOR, plan
from .reference import output_format


@triton.jit
def _channels(
    block, C: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr
):
    """A block's channels [LANES], and which of them are real."""
    lane = tl.arange(0, LANES)
    if PARTS == 1:  # WIDTH // D whole groups
        channel = block * WIDTH + lane
        live = (lane < WIDTH) & (channel < C)
    else:  # a part of one group
        within = block % PARTS * WIDTH + lane
        channel = block // PARTS * D + within
        live = (lane < WIDTH) & (within < D)
    return channel, live


@triton.jit
def _groups(
    block, C: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr
):
    """A block's groups [GROUPS], and which of them are real."""
    slot = tl.arange(0, GROUPS)
    if PARTS == 1:
        group = block * (WIDTH // D) + slot
        real = (slot < WIDTH // D) & (group < C // D)
    else:
        group = block // PARTS + slot
        real = slot < 1
    return group, real


@triton.jit
def _members(live, D: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr):
    """[LANES, GROUPS]: which channel belongs to which of the block's groups."""
    lane = tl.arange(0, LANES)
    slot = lane // D if PARTS == 1 else lane * 0
    return (slot[:, None] == tl.arange(0, GROUPS)[None, :]) & live[:, None]


@triton.jit
def _over_channels(values, members):
    """Sum [LANES] over each group's channels: [GROUPS]."""
    return tl.sum(tl.where(members, values[:, None], 0.0), axis=0)


@triton.jit
def _to_channels(values, members):
    """[GROUPS] handed back to the channels: [LANES]."""
    return tl.sum(tl.where(members, values[None, :], 0.0), axis=1)


@triton.jit
def _source(
    x,  # the sample's [C_X, H, W]
    skip,  # the sample's [C - C_X, H, W], or None
    x_step,
    skip_step,
    channel,  # [LANES]
    C_X: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Where channels of [x, skip] begin, and how far apart their pixels are: two [LANES].

    A select between addresses: the seam costs no second load, and nothing within the loops.
    """
    stride = tl.full(channel.shape, 1, tl.int32) * x_step * UNIT
    start = x + (channel if CHANNELS_LAST else channel * stride)
    if skip is not None:
        first = channel < C_X
        other = channel - C_X
        skip_stride = tl.full(channel.shape, 1, tl.int32) * skip_step * UNIT
        start = tl.where(first, start, skip + (other if CHANNELS_LAST else other * skip_stride))
        stride = tl.where(first, stride, skip_stride)
    if not CHANNELS_LAST:
        stride = tl.full(channel.shape, 1, tl.int32)
    return start, stride


@triton.jit
def _update(mean, m2, seen, source, stride, live, pixel, stop, WHOLE: tl.constexpr):
    """Welford's update by a row of pixels. WHOLE: all of them are below `stop`."""
    mask = live[None, :] if WHOLE else (pixel < stop)[:, None] & live[None, :]
    value = tl.load(source[None, :] + pixel[:, None] * stride[None, :], mask=mask, other=0.0).to(tl.float32)
    delta = value - mean
    if not WHOLE:
        delta = tl.where(mask, delta, 0.0)
    mean += delta * (1.0 / seen)
    m2 += delta * (value - mean)
    return mean, m2


@triton.jit
def _moments(
    source,
    stride,
    live,
    first,  # pixels [first, stop)
    stop,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
    LANES: tl.constexpr,
):
    """Mean, and sum of squared deviations from it, of each channel over the pixels: two [LANES]."""
    TILE: tl.constexpr = ROWS * UNROLL
    row = tl.arange(0, ROWS)
    mean = tl.zeros((ROWS, LANES), tl.float32)
    m2 = tl.zeros((ROWS, LANES), tl.float32)
    seen = 0.0
    # Channels-last: whole tiles, then the rows that are left, as a masked update takes a select for every element.
    # (NCHW: the compiler for sm_100 would keep the next tile's loads in registers too, more than there are.)
    # Lanes that are not live load 0 every time, so that their mean and deviations are 0.
    whole = first + (stop - first) // TILE * TILE if CHANNELS_LAST else stop
    for start in range(first, whole, TILE):
        for u in tl.static_range(UNROLL):  # independent loads: the compiler issues them together
            seen += 1.0
            pixel = start + u * ROWS + row
            mean, m2 = _update(mean, m2, seen, source, stride, live, pixel, stop, CHANNELS_LAST)
    if CHANNELS_LAST:
        for start in range(whole, stop, ROWS):
            seen += 1.0
            mean, m2 = _update(mean, m2, seen, source, stride, live, start + row, stop, False)
    # A row's pixels are first + row, + ROWS, ...: rows have seen unlike numbers of them.
    count = tl.maximum(stop - first - row + (ROWS - 1), 0) // ROWS
    count = count.to(tl.float32)[:, None]
    total = (stop - first).to(tl.float32)
    channel_mean = tl.sum(mean * count, axis=0) / total
    apart = mean - channel_mean[None, :]
    return channel_mean, tl.sum(m2 + count * apart * apart, axis=0)


@triton.jit
def _coefficients(
    mean,  # [GROUPS]
    m2,  # [GROUPS]
    n,  # D * H * W
    eps,
    add,
    weight,
    bias,
    scale,
    shift,
    add_row,  # elements from a sample to the next
    scale_row,
    shift_row,
    b,
    channel,
    live,
    members,
):
    """The whole map as y = act((x - centre) * gain + offset), a channel each: three [LANES]."""
    centre = _to_channels(mean, members)
    gain = _to_channels(tl.rsqrt(m2 / n + eps), members)
    b = b.to(tl.int64)
    if add is not None:
        centre -= tl.load(add + b * add_row + channel, mask=live, other=0.0).to(tl.float32)
    if weight is not None:
        gain *= tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
    offset = tl.zeros_like(gain)
    if bias is not None:
        offset = tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)
    if scale is not None:
        factor = 1.0 + tl.load(scale + b * scale_row + channel, mask=live, other=0.0).to(tl.float32)
        gain *= factor
        offset *= factor
    if shift is not None:
        offset += tl.load(shift + b * shift_row + channel, mask=live, other=0.0).to(tl.float32)
    return centre, gain, offset


@triton.jit
def _silu(z):
    """z / (1 + exp(-z)), in 6 instructions.

    `tl.exp` and a division scale their arguments lest they overflow, which takes 12. Here the power of 2 may: to
    infinity, whose inverse root is the 0 that z / (1 + exp(-z)) is next to; and 1 + exp(-z) is at least 1.
    """
    root = tl.rsqrt(1.0 + tl.exp2(z * -1.4426950408889634))  # log2(e)
    return z * root * root


@triton.jit
def _normalise(
    source,
    stride,
    y,  # the sample's [C, H, W]
    centre,
    gain,
    offset,
    channel,
    live,
    first,
    stop,
    pixels,
    C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write y for the pixels [first, stop)."""
    for start in range(first, stop, ROWS):
        pixel = start + tl.arange(0, ROWS)
        mask = (pixel < pixels)[:, None] & live[None, :]
        pointers = source[None, :] + pixel[:, None] * stride[None, :]
        # The last read of x: it need not stay in the cache.
        value = tl.load(pointers, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        z = (value - centre[None, :]) * gain[None, :] + offset[None, :]
        if ACT:
            z = _silu(z)
        if CHANNELS_LAST:
            element = pixel[:, None] * C + channel[None, :]
        else:
            element = pixel[:, None] + channel[None, :] * pixels
        tl.store(y + element, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_kernel(
    x,  # [B, C_X, H, W]
    skip,  # [B, C - C_X, H, W], x's type and layout, or None
    add,  # [B, C], each sample's contiguous, or None
    weight,  # [C] or None
    bias,  # [C] or None
    scale,  # as add
    shift,
    y,  # [B, C, H, W], x's type and layout
    eps,
    length,  # H * W; in units where the layout is NCHW
    x_sample,  # from a sample to the next, in units
    x_step,  # from a pixel (channels-last) or channel (NCHW) to the next, in units
    skip_sample,
    skip_step,
    add_row,  # from a sample to the next, in elements
    scale_row,
    shift_row,
    blocks,  # of channels, a sample
    C: tl.constexpr,
    C_X: tl.constexpr,
    D: tl.constexpr,  # channels of a group
    WIDTH: tl.constexpr,  # channels of a block: whole groups
    LANES: tl.constexpr,  # WIDTH's next power of 2
    GROUPS: tl.constexpr,  # of the next power of 2 of groups of a block
    UNIT: tl.constexpr,  # elements that strides are counted in, so that the compiler knows their alignment
    CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # Grid: blocks * B, the blocks of a sample side by side.
    block = tl.program_id(0) % blocks
    b = tl.program_id(0) // blocks
    pixels = length if CHANNELS_LAST else length * UNIT
    channel, live = _channels(block, C, D, WIDTH, 1, LANES)
    members = _members(live, D, 1, GROUPS, LANES)
    x += b.to(tl.int64) * x_sample * UNIT
    if skip is not None:
        skip += b.to(tl.int64) * skip_sample * UNIT
    y += b.to(tl.int64) * C * pixels

    source, stride = _source(x, skip, x_step, skip_step, channel, C_X, UNIT, CHANNELS_LAST)
    mean, m2 = _moments(source, stride, live, 0, pixels, CHANNELS_LAST, ROWS, UNROLL, LANES)
    if add is not None:
        mean += tl.load(add + b.to(tl.int64) * add_row + channel, mask=live, other=0.0).to(tl.float32)
    group_mean = _over_channels(mean, members) / D
    apart = mean - _to_channels(group_mean, members)
    group_m2 = _over_channels(m2 + apart * apart * pixels, members)
    centre, gain, offset = _coefficients(
        group_mean, group_m2, D * pixels, eps, add, weight, bias, scale, shift,
        add_row, scale_row, shift_row, b, channel, live, members,
    )  # fmt: skip
    # The second read of x, from the cache.
    _normalise(
        source, stride, y, centre, gain, offset, channel, live, 0, pixels, pixels,
        C, CHANNELS_LAST, ACT, ROWS * UNROLL,
    )  # fmt: skip


@triton.jit
def statistics_kernel(
    x,  # as above
    skip,
    add,
    partial,  # float32 [2, B, G, PARTS * splits]: mean, and sum of squared deviations
    length,
    x_sample,
    x_step,
    skip_sample,
    skip_step,
    add_row,
    blocks,
    splits,  # of the pixels
    run,  # pixels of a split
    plane,  # B * G * PARTS * splits
    C: tl.constexpr,
    C_X: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,  # blocks that a group is cut into
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # Grid: blocks * splits * B.
    program = tl.program_id(0)
    block = program % blocks
    split = program // blocks % splits
    b = program // (blocks * splits)
    pixels = length if CHANNELS_LAST else length * UNIT
    channel, live = _channels(block, C, D, WIDTH, PARTS, LANES)
    members = _members(live, D, PARTS, GROUPS, LANES)
    x += b.to(tl.int64) * x_sample * UNIT
    if skip is not None:
        skip += b.to(tl.int64) * skip_sample * UNIT

    first = split * run
    stop = tl.minimum(first + run, pixels)
    source, stride = _source(x, skip, x_step, skip_step, channel, C_X, UNIT, CHANNELS_LAST)
    mean, m2 = _moments(source, stride, live, first, stop, CHANNELS_LAST, ROWS, UNROLL, LANES)
    if add is not None:
        mean += tl.load(add + b.to(tl.int64) * add_row + channel, mask=live, other=0.0).to(tl.float32)
    share = tl.minimum(D - block % PARTS * WIDTH, WIDTH) if PARTS > 1 else D  # channels that a group has here
    group_mean = _over_channels(mean, members) / share
    apart = mean - _to_channels(group_mean, members)
    group_m2 = _over_channels(m2 + apart * apart * (stop - first), members)

    group, real = _groups(block, C, D, WIDTH, PARTS, GROUPS)
    partial += b.to(tl.int64) * (C // D * PARTS) * splits
    place = (group * PARTS + block % PARTS) * splits + split
    tl.store(partial + place, group_mean, mask=real)
    tl.store(partial + plane + place, group_m2, mask=real)


@triton.jit
def apply_kernel(
    x,  # as above
    skip,
    add,
    weight,
    bias,
    scale,
    shift,
    partial,
    y,
    eps,
    length,
    x_sample,
    x_step,
    skip_sample,
    skip_step,
    add_row,
    scale_row,
    shift_row,
    blocks,
    splits,
    run,
    plane,
    C: tl.constexpr,
    C_X: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTIALS: tl.constexpr,  # the next power of 2 of PARTS * splits
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
):
    # Grid: as the statistics', but backwards: what was read last there is still in the L2 cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block = program % blocks
    split = program // blocks % splits
    b = program // (blocks * splits)
    pixels = length if CHANNELS_LAST else length * UNIT
    channel, live = _channels(block, C, D, WIDTH, PARTS, LANES)
    members = _members(live, D, PARTS, GROUPS, LANES)

    group, real = _groups(block, C, D, WIDTH, PARTS, GROUPS)
    part = tl.arange(0, PARTIALS)
    there = real[:, None] & (part < PARTS * splits)[None, :]
    partial += b.to(tl.int64) * (C // D * PARTS) * splits
    place = group[:, None] * (PARTS * splits) + part[None, :]
    means = tl.load(partial + place, mask=there, other=0.0)
    m2s = tl.load(partial + plane + place, mask=there, other=0.0)
    part_channels = tl.minimum(D - part // splits * WIDTH, WIDTH) if PARTS > 1 else D
    part_pixels = tl.minimum(pixels - part % splits * run, run)
    count = tl.where(part < PARTS * splits, part_channels * part_pixels, 0).to(tl.float32)[None, :]
    mean = tl.sum(means * count, axis=1) / (D * pixels)
    apart = means - mean[:, None]
    m2 = tl.sum(m2s + count * apart * apart, axis=1)

    centre, gain, offset = _coefficients(
        mean, m2, D * pixels, eps, add, weight, bias, scale, shift,
        add_row, scale_row, shift_row, b, channel, live, members,
    )  # fmt: skip
    x += b.to(tl.int64) * x_sample * UNIT
    if skip is not None:
        skip += b.to(tl.int64) * skip_sample * UNIT
    y += b.to(tl.int64) * C * pixels
    first = split * run
    source, stride = _source(x, skip, x_step, skip_step, channel, C_X, UNIT, CHANNELS_LAST)
    _normalise(
        source, stride, y, centre, gain, offset, channel, live, first, tl.minimum(first + run, pixels), pixels,
        C, CHANNELS_LAST, ACT, ROWS,
    )  # fmt: skip


def launch(
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
    out: Tensor | None = None,
) -> Tensor:
    """Launch on arguments that `group_norm` has checked. out: where the result goes, in its layout and dense."""
    batch, own_channels, height, width = x.shape
    channels = own_channels + (0 if skip is None else skip.shape[1])
    pixels = height * width
    memory_format = output_format(x, skip)
    channels_last = memory_format == torch.channels_last
    y = out
    if y is None:
        shape = (batch, channels, height, width)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    size = channels // num_groups
    way = plan(batch, num_groups, size, pixels, x.element_size(), channels_last, rows.wide.get())

    steps = [_steps(tensor, channels_last) for tensor in (x, skip) if tensor is not None]
    unit = VECTOR // x.element_size()
    # Whatever must be a multiple of the unit: strides, and in y too a pixel's or a channel's extent.
    unit = math.gcd(unit, channels if channels_last else pixels, *(step for pair in steps for step in pair))
    if skip is None:
        steps.append((0, 0))
    (x_sample, x_step), (skip_sample, skip_step) = ((a // unit, b // unit) for a, b in steps)
    length = pixels if channels_last else pixels // unit
    strides = (length, x_sample, x_step, skip_sample, skip_step)
    add_row, *other_rows = (0 if value is None else value.stride(0) for value in (add, scale, shift))
    constants = {
        "C": channels,
        "C_X": own_channels,
        "D": size,
        "WIDTH": way.width,
        "LANES": way.lanes,
        "GROUPS": way.groups,
        "UNIT": unit,
        "CHANNELS_LAST": channels_last,
    }
    options = {"num_warps": way.num_warps, "enable_fp_fusion": True}
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        if way.one_launch:
            group_norm_kernel[(way.blocks * batch,)](
                x, skip, add, weight, bias, scale, shift, y, float(eps), *strides, add_row, *other_rows,
                way.blocks, **constants, ACT=act, ROWS=way.rows, UNROLL=way.unroll, **options,
            )  # fmt: skip
            return y
        grid = (way.blocks * way.splits * batch,)
        constants["PARTS"] = way.parts
        plane = batch * num_groups * way.parts * way.splits
        partial = torch.empty(2 * plane, dtype=torch.float32, device=x.device)
        split = (way.blocks, way.splits, way.run, plane)
        statistics_kernel[grid](
            x,
            skip,
            add,
            partial,
            *strides,
            add_row,
            *split,
            **constants,
            ROWS=way.rows,
            UNROLL=way.unroll,
            **options,
        )
        apply_kernel[grid](
            x, skip, add, weight, bias, scale, shift, partial, y, float(eps), *strides, add_row, *other_rows, *split,
            **constants, PARTIALS=way.partials, ACT=act, ROWS=way.rows * way.unroll, **options,
        )  # fmt: skip
    return y


def _steps(x: Tensor, channels_last: bool) -> tuple[int, int]:
    """Elements from a sample to the next, and from a pixel (channels-last) or a channel (NCHW) to the next."""
    batch, channels, height, width = x.shape
    sample = x.stride(0) if batch > 1 else 0
    if not channels_last:
        return sample, x.stride(1) if channels > 1 else 0
    if height == width == 1:
        return sample, 0
    return sample, x.stride(3) if width > 1 else x.stride(2)
