"""The affine coupling as a Triton kernel bound by memory, with the log-determinant as a by-product.

A program changes some tiles of a sample (or a tile of several small samples), and adds up log a on the way. Every
sum is the balanced binary tree over the sample's elements in order, padded with zeros: a + b is the same in either
order, and zeros change nothing, so that the result does not depend on how the tree is cut into tiles, programs and
launches, nor on the batch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import plan

MAPS = {"exp": 0, "sigmoid": 1, "sigmoid_eps": 2, "tanh": 3, "soft_clip": 4, "additive": 5}
_SIGMOID, _SIGMOID_EPS, _TANH, _SOFT_CLIP, _ADDITIVE = (
    tl.constexpr(MAPS[name]) for name in ("sigmoid", "sigmoid_eps", "tanh", "soft_clip", "additive")
)
# Which elements change: all, an image's checkerboard, every other feature of a vector, or those of a mask.
ALL, CHECKERBOARD, ALTERNATE, MASK = 0, 1, 2, 3
_ALL, _CHECKERBOARD, _ALTERNATE = tl.constexpr(ALL), tl.constexpr(CHECKERBOARD), tl.constexpr(ALTERNATE)


@triton.jit
def _log1p(u):
    """log(1 + u) for u in [0, 1]: twice the artanh series of u / (2 + u), whose remainder is under 2e-8 of it."""
    z = u / (2.0 + u)
    w = z * z
    series = 1.0 / 13.0
    series = series * w + 1.0 / 11.0
    series = series * w + 1.0 / 9.0
    series = series * w + 1.0 / 7.0
    series = series * w + 1.0 / 5.0
    series = series * w + 1.0 / 3.0
    return 2.0 * z + 2.0 * z * w * series


@triton.jit
def _tanh(s):
    """tanh(s): an odd polynomial (Cephes' tanhf) near 0, where the formula by exp loses all digits."""
    w = s * s
    series = -5.70498872745e-3
    series = series * w + 2.06390887954e-2
    series = series * w - 5.37397155531e-2
    series = series * w + 1.33314422036e-1
    series = series * w - 3.33332819422e-1
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(s)) + 1.0)
    return tl.where(tl.abs(s) < 0.625, s + s * w * series, tl.where(s < 0.0, -far, far))


@triton.jit
def _scale(s, parameter, amplitude, MAP: tl.constexpr, INVERSE: tl.constexpr):
    """(a, log a) of raw scales s; of 1 / a if INVERSE.

    parameter: eps of the sigmoid, 1 / |log slope| of the soft clip.
    """
    if MAP == _SIGMOID or MAP == _SIGMOID_EPS:  # noqa: SIM109
        v = s + 2.0
        e = tl.exp(-tl.abs(v))
        # sigmoid(v) = top / bottom, without overflow
        top = tl.where(v >= 0.0, 1.0, e)
        bottom = 1.0 + e
        if MAP == _SIGMOID_EPS:
            top += parameter * bottom
        if INVERSE:
            a = bottom / top
        else:
            a = top / bottom
        if MAP == _SIGMOID_EPS:
            log_a = tl.log(a)
        else:
            log_a = tl.minimum(v, 0.0) - _log1p(e)
            if INVERSE:
                log_a = -log_a
    else:
        log_a = s
        if MAP == _TANH:
            log_a = amplitude * _tanh(s)
        if MAP == _SOFT_CLIP:
            log_a = s / (1.0 + tl.abs(s) * parameter)
        if INVERSE:
            log_a = -log_a
        a = tl.exp(log_a)
    return a, log_a


@triton.jit
def _tree_sum(values, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    """Sums over the rows of `values` [ROWS, 2^LEVELS], neighbours first."""
    for level in tl.static_range(LEVELS):
        pairs = tl.reshape(values, (ROWS, 1 << (LEVELS - 1 - level), 2))
        values = tl.sum(pairs, axis=2)
    return tl.reshape(values, (ROWS,))


@triton.jit
def coupling_kernel(
    x,  # float32 [B, C, P]: C channels of P pixels; strides below
    y,  # float32 [B, C, P]; may be x itself
    network,  # [B, 2C (additive: C), P], any float type
    rescale,  # float32 [C], or None
    mask,  # uint8 [C, P], strides 0 where it is broadcast; or None
    partial,  # float32 [B, programs a sample], contiguous: sums of log a; or None
    batch,  # B
    pixels,  # P = H * W; 1 for vectors
    x_batch,  # strides in elements, over UNIT for those of samples
    y_batch,
    network_batch,
    x_channel,
    y_channel,
    network_channel,  # between neighbouring raw scales, s
    network_step,  # between channels of the network's output, s or t
    mask_channel,
    mask_pixel,
    parameter,  # of the map, see _scale
    bound,  # float
    tiles,  # of a sample
    tiles_across,  # of its pixels, where the tile is [channels, pixels]
    programs,  # a sample's programs
    C: tl.constexpr,
    WIDTH: tl.constexpr,  # of a checkerboard
    S_FIRST: tl.constexpr,  # where s and t begin, in channels of the network's output
    T_FIRST: tl.constexpr,
    X_PIXEL: tl.constexpr,  # strides of pixels; of elements if FLAT
    Y_PIXEL: tl.constexpr,
    NETWORK_PIXEL: tl.constexpr,
    UNIT: tl.constexpr,  # what all strides of samples are multiples of: with C, it lets 16-byte accesses be seen
    MAP: tl.constexpr,
    CHANGED: tl.constexpr,  # ALL, CHECKERBOARD, ALTERNATE or MASK
    PARITY: tl.constexpr,  # of row + column, or of the feature, where it changes
    INVERSE: tl.constexpr,
    SHIFT_FIRST: tl.constexpr,
    ADD: tl.constexpr,  # partial += sums, rather than =
    FLAT: tl.constexpr,  # x, y, s and t of a sample are runs in one order; the tile is [samples, elements]
    ROWS: tl.constexpr,  # the tile is [ROWS, COLUMNS]; not FLAT: [channels, pixels]
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,  # log2 of what a sample has in a tile: COLUMNS if FLAT, else ROWS * COLUMNS
    TILES: tl.constexpr,  # tiles of a program, a power of two
    TILE_LEVELS: tl.constexpr,  # log2(TILES)
):
    # Grid: one axis, a sample's programs beside each other; a long batch does not fit the other axes.
    part = tl.program_id(0) % programs
    group = tl.program_id(0) // programs
    SAMPLES: tl.constexpr = ROWS if FLAT else 1
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    sample = group.to(tl.int64)
    if FLAT:
        sample = sample * ROWS + row
    x_base = x + sample * x_batch * UNIT
    y_base = y + sample * y_batch * UNIT
    network_base = network + sample * network_batch * UNIT
    totals = tl.zeros((SAMPLES, TILES), tl.float32)

    count = TILES
    if TILES > 1:
        count = tl.minimum(TILES, tiles - part * TILES)
    for i in range(count):
        tile = part * TILES + i
        if FLAT:
            element = tile * COLUMNS + column
            inside = (sample < batch) & (element < C * pixels)
            channel = element  # needed of vectors only
            pixel = 0
            x_at = element * X_PIXEL
            y_at = element * Y_PIXEL
            network_at = element * NETWORK_PIXEL
        else:
            channel = (tile // tiles_across) * ROWS + row
            pixel = (tile % tiles_across) * COLUMNS + column
            inside = (channel < C) & (pixel < pixels)
            x_at = channel * x_channel + pixel * X_PIXEL
            y_at = channel * y_channel + pixel * Y_PIXEL
            network_at = channel * network_channel + pixel * NETWORK_PIXEL

        xv = tl.load(x_base + x_at, mask=inside, other=0.0)
        t_at = network_at + T_FIRST * network_step
        t = tl.load(network_base + t_at, mask=inside, other=0.0).to(tl.float32)
        if MAP == _ADDITIVE:
            if INVERSE:
                value = xv - t
            else:
                value = xv + t
        else:
            s_at = network_at + S_FIRST * network_step
            s = tl.load(network_base + s_at, mask=inside, other=0.0).to(tl.float32)
            amplitude = bound
            if rescale is not None:
                amplitude = bound * tl.load(rescale + channel, mask=channel < C, other=0.0)
            a, log_a = _scale(s, parameter, amplitude, MAP, INVERSE)
            if INVERSE:
                if SHIFT_FIRST:
                    value = xv * a - t
                else:
                    value = (xv - t) * a
            else:
                if SHIFT_FIRST:
                    value = (xv + t) * a
                else:
                    value = xv * a + t
        active = inside
        if CHANGED != _ALL:
            # Whole 16-byte words move; an element that does not change passes through with its bits.
            if CHANGED == _CHECKERBOARD:
                active = inside & (((pixel // WIDTH + pixel % WIDTH) & 1) == PARITY)
            elif CHANGED == _ALTERNATE:
                active = inside & ((channel & 1) == PARITY)
            else:
                mask_at = channel * mask_channel + pixel * mask_pixel
                active = inside & (tl.load(mask + mask_at, mask=inside, other=0) != 0)
            value = tl.where(active, value, xv)
        tl.store(y_base + y_at, value, mask=inside)
        if partial is not None:
            log_a = tl.where(active, log_a, 0.0)
            if not FLAT:
                log_a = tl.reshape(log_a, (1, ROWS * COLUMNS))
            total = _tree_sum(log_a, SAMPLES, LEVELS)[:, None]
            totals = tl.where(tl.arange(0, TILES)[None, :] == i, total, totals)

    if partial is not None:
        samples = group * SAMPLES + tl.arange(0, SAMPLES)
        at = partial + samples.to(tl.int64) * programs + part
        sums = _tree_sum(totals, SAMPLES, TILE_LEVELS)
        if ADD:
            sums += tl.load(at, mask=samples < batch, other=0.0)
        tl.store(at, sums, mask=samples < batch)


@triton.jit
def sum_kernel(
    partial,  # [B, count] float32, contiguous
    total,  # [B, blocks] float32, contiguous
    count,
    blocks,  # a sample's programs
    ADD: tl.constexpr,  # total += sums
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,  # log2(BLOCK)
):
    # Grid: one axis, B * blocks.
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    part = tl.program_id(0) % blocks
    column = part * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(partial + sample * count + column, mask=column < count, other=0.0)
    at = total + sample * blocks + part + tl.arange(0, 1)
    sums = _tree_sum(values, 1, LEVELS)
    if ADD:
        sums += tl.load(at)
    tl.store(at, sums)


def launch(
    x: Tensor,
    y: Tensor,
    network: Tensor,
    log_det: Tensor | None,
    add: bool,
    scale: str,
    eps: float,
    bound: float,
    slope: float,
    rescale: Tensor | None,
    mask: Tensor | None,
    parity: int | None,
    parameters: str,
    inverse: bool,
    shift_first: bool,
) -> None:
    """Launch the kernels on arguments that `affine_coupling` has checked; y may be x.

    log_det: [B], contiguous, overwritten, or added to if `add`; or None.
    """
    # A vector is an image of one pixel with many channels.
    batch, channels, height, width = x.shape if x.dim() == 4 else (*x.shape, 1, 1)
    pixels = height * width
    tensors = (x, y, network)
    spread, s_first, t_first = 1, 0, 0
    if scale != "additive":
        spread = 2 if parameters.endswith("_interleaved") else 1
        second = 1 if spread == 2 else channels
        s_first, t_first = (0, second) if parameters.startswith("scale") else (second, 0)
    channel_strides = [x.stride(1), y.stride(1), network.stride(1) * spread]
    pixel_strides = [_pixel_stride(tensor) for tensor in tensors]

    # One run in the same order in all three? Then channels and pixels need not be told apart, unless something
    # depends on them: a division for each element costs more than what a plane's tiles leave idle.
    pairs = list(zip(channel_strides, pixel_strides, strict=True))
    channel_major = [_run(channel, pixel, channels, pixels) for channel, pixel in pairs]
    pixel_major = [_run(pixel, channel, pixels, channels) for channel, pixel in pairs]
    runs = pixel_major if None in channel_major else channel_major
    flat = None not in runs
    if pixels > 1 and (rescale is not None or mask is not None or parity is not None):
        flat = False
    if flat:
        pixel_strides = [run or 0 for run in runs]
        config = plan.flat_launch(batch, channels * pixels)
        across, tiles = 1, plan.cdiv(channels * pixels, config.columns)
    else:
        config = plan.plane_launch(batch, channels, pixels, all(pixel == 1 for pixel in pixel_strides))
        across = plan.cdiv(pixels, config.columns)
        tiles = plan.cdiv(channels, config.rows) * across
    programs = plan.cdiv(tiles, config.tiles)
    # The stride of a single sample means nothing, and may be anything.
    batch_strides = [tensor.stride(0) if batch > 1 else 0 for tensor in tensors]
    unit = math.gcd(16, *batch_strides)

    partial = log_det
    if log_det is not None and programs > 1:
        partial = torch.empty((batch, programs), dtype=torch.float32, device=x.device)
    chosen = ALL if mask is None else MASK
    if parity is not None:
        chosen = CHECKERBOARD if x.dim() == 4 else ALTERNATE
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        coupling_kernel[(programs * (plan.cdiv(batch, config.rows) if flat else batch),)](
            x,
            y,
            network,
            rescale,
            None if mask is None else mask.view(torch.uint8),
            partial,
            batch,
            pixels,
            *(stride // unit for stride in batch_strides),
            *channel_strides,
            network.stride(1),
            *((0, 0) if mask is None else _mask_strides(mask)),
            {"sigmoid": eps, "soft_clip": 1.0 / abs(math.log(slope))}.get(scale, 0.0),
            bound,
            tiles,
            across,
            programs,
            C=channels,
            WIDTH=width if chosen == CHECKERBOARD else 1,
            S_FIRST=s_first,
            T_FIRST=t_first,
            X_PIXEL=pixel_strides[0],
            Y_PIXEL=pixel_strides[1],
            NETWORK_PIXEL=pixel_strides[2],
            UNIT=unit,
            MAP=MAPS["sigmoid_eps" if scale == "sigmoid" and eps else scale],
            CHANGED=chosen,
            PARITY=parity or 0,
            INVERSE=inverse,
            SHIFT_FIRST=shift_first,
            ADD=add and programs == 1,
            FLAT=flat,
            ROWS=config.rows,
            COLUMNS=config.columns,
            LEVELS=_log2(config.columns if flat else config.rows * config.columns),
            TILES=config.tiles,
            TILE_LEVELS=_log2(config.tiles),
            num_warps=config.num_warps,
            enable_fp_fusion=True,
        )
        while log_det is not None and partial is not None and partial is not log_det:
            partial = _add_up(partial, log_det, add)


def _add_up(partial: Tensor, log_det: Tensor, add: bool) -> Tensor:
    """One launch towards `log_det` [B] from partial sums [B, count]: log_det itself, or fewer sums."""
    batch, count = partial.shape
    block = min(plan.power_of_two(count), plan.SUM_BLOCK)
    blocks = plan.cdiv(count, block)
    total = log_det if blocks == 1 else partial.new_empty((batch, blocks))
    sum_kernel[(batch * blocks,)](
        partial,
        total,
        count,
        blocks,
        ADD=add and blocks == 1,
        BLOCK=block,
        LEVELS=_log2(block),
        num_warps=min(max(block // 256, 1), 8),
        enable_fp_fusion=True,
    )
    return total


def _log2(power: int) -> int:
    return power.bit_length() - 1


def _pixel_stride(tensor: Tensor) -> int:
    """The stride of the pixels of images whose rows lie at even distances; 0 for vectors."""
    if tensor.dim() == 2:
        return 0
    return tensor.stride(3) if tensor.shape[3] > 1 else tensor.stride(2)


def _run(outer: int, inner: int, outer_size: int, inner_size: int) -> int | None:
    """The stride of two axes as one, the inner running fastest; None if they do not merge."""
    if inner_size == 1:
        return outer
    return inner if outer_size == 1 or outer == inner_size * inner else None


def _mask_strides(mask: Tensor) -> tuple[int, int]:
    """Strides of channels and pixels of a contiguous mask [C or 1, H, W], [C, 1, 1] or [D]."""
    pixels = mask[0].numel()
    return pixels if mask.shape[0] > 1 else 0, int(pixels > 1)
