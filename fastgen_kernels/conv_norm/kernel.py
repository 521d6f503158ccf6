"""Convolution and norm in Triton: an implicit matrix product, [Cout, terms] by [terms, pixels], and what finishes it.

`product_kernel` gathers every pixel's channels, tap by tap, under a mask: stride, padding and upsampling are
addresses. What is summed lies one behind the other: taps and channels of x and beside, channels of the shortcut's
inputs. Where there are too few tiles for all multiprocessors, the sum is split among programs, which leave float32
parts; `finish_kernel` adds them in a fixed order, without atomics, and goes on to the norm, a program for each group of
a sample. Parts lie as [splits, Cout / 4, pixels, 4], so that a group of a multiple of 4 channels is contiguous.

With programmatic dependent launch (sm_90 on, `launching.dependent_launch`) a kernel's programs may be placed while
those of the kernel before still run. They bring what no kernel writes, weights, to the L2 cache, and then wait.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..group_norm.kernel import _silu
from ..patch_conv.layout import GROUP

_GROUP = tl.constexpr(GROUP)
QUAD = 4  # channels of a pixel's parts that lie together: 16 bytes
_QUAD = tl.constexpr(QUAD)


@triton.jit
def _accumulate(
    acc,  # float32 [BM, BN]
    x,  # [B, C, H, W], a pixel's channels together
    weight,  # [COUT, K, K, *], this input's first channel
    lo,  # steps [lo, hi) of this input's
    hi,
    chunks,  # steps of a tap
    n,  # [BM] channels
    b,  # [BN] sample, row (of tap 0) and column of every pixel
    h,
    w,
    live,  # [BN]
    channels,  # C
    cout,
    height,  # H, W
    width,
    x_sample,  # strides in groups of 8 elements, so that the compiler sees what divides them
    x_row,
    x_column,
    x_channel,
    weight_row,  # from an output channel to the next, and from a tap to the next, in the same units
    weight_tap,
    K: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    FEW: tl.constexpr,  # x's strides are in elements, and x_channel is one of them
    FAR: tl.constexpr,  # an input's elements are more than int32 counts
    RAGGED: tl.constexpr,  # BK does not divide C rounded up to groups
    HOLES: tl.constexpr,  # groups of 8 do not divide C; what lies beyond may be anything
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
):
    k = tl.arange(0, BK)
    unit: tl.constexpr = 1 if FEW else _GROUP
    sample = (b.to(tl.int64) if FAR else b) * x_sample * unit
    # Rows from cout on read the last one, so that weights need no mask; what comes of them is not stored.
    filters = tl.minimum(n, cout - 1) * (weight_row * _GROUP)
    for i in range(lo, hi):
        tap = i // chunks
        c = (i - tap * chunks) * BK + k
        ih = h + tap // K
        iw = w + tap % K
        if UPSAMPLE:
            inside = live & (ih >= 0) & (ih < 2 * height) & (iw >= 0) & (iw < 2 * width)
            ih = ih >> 1
            iw = iw >> 1
        else:
            inside = live & (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
        at = sample + (ih * x_row + iw * x_column) * unit
        pixel_mask = inside[None, :]
        column = (tap * weight_tap * _GROUP + c)[None, :]
        if RAGGED:
            whole = c < (channels + (_GROUP - 1)) // _GROUP * _GROUP
            pixel_mask = pixel_mask & whole[:, None]
            taps = tl.load(weight + (filters[:, None] + column), mask=whole[None, :], other=0.0)
        else:
            taps = tl.load(weight + (filters[:, None] + column))
        if FEW:
            few_mask = pixel_mask & (c < channels)[:, None]
            pixels = tl.load(
                x + (at[None, :] + ((c.to(tl.int64) if FAR else c) * x_channel)[:, None]),
                mask=few_mask,
                other=0.0,
            )
        else:
            pixels = tl.load(x + (at[None, :] + c[:, None]), mask=pixel_mask, other=0.0)
        if HOLES:  # after the load, which stays wide
            pixels = tl.where((c < channels)[:, None], pixels, 0.0)
            taps = tl.where((c < channels)[None, :], taps, 0.0)
        acc = tl.dot(taps, pixels, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _prefetch(weight, n, row, first, last, BK: tl.constexpr):
    """Bring columns [first, last) of weight's rows n to the L2 cache, a row's BK terms at a time."""
    for column in range(first, last, BK):
        address = (weight + (n * row + column)).to(tl.int64, bitcast=True)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [address],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


# Sizes are no part of the compiled code: the layers of a network share kernels.
_SIZES = (
    "pixels", "cout_units", "height", "width", "out_height", "out_width", "splits", "steps", "before",
    "x_channels", "x_chunks", "x_sample", "x_row", "x_column", "x_channel", "weight_row", "weight_tap",
    "beside_channels", "beside_chunks", "beside_sample", "beside_row", "beside_column",
    "shortcut_channels", "shortcut_chunks", "shortcut_sample", "shortcut_row", "shortcut_column", "shortcut_weight_row",
    "shortcut_beside_channels", "shortcut_beside_chunks", "shortcut_beside_sample", "shortcut_beside_row",
    "shortcut_beside_column", "add_units",
)  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def product_kernel(
    x,  # [B, C, H, W], a pixel's channels together
    beside,  # [B, C', H, W] or None
    weight,  # [COUT, K, K, C + C'], rounded up to groups
    shortcut,  # [B, S, OH, OW] or None
    shortcut_beside,  # [B, S', OH, OW] or None
    shortcut_weight,  # [COUT, S + S'] or None
    bias,  # [COUT] or None; this and the two that follow where PARTS is not set
    add,  # [B, COUT] or None
    residual,  # [B, OH, OW, COUT] or None
    out,  # [B, OH, OW, COUT]; PARTS: float32 [splits, COUT / 4, B * OH * OW, 4]
    factor,  # 1 / output_scale
    pixels,  # B * OH * OW
    cout_units,  # COUT / UNIT
    height,
    width,
    out_height,
    out_width,
    splits,
    steps,  # of all inputs together
    before,  # rows and columns of padding
    x_channels,
    x_chunks,  # steps of a tap
    x_sample,  # strides in groups of 8 elements; FEW: in elements
    x_row,
    x_column,
    x_channel,
    weight_row,
    weight_tap,
    beside_channels,
    beside_chunks,
    beside_sample,
    beside_row,
    beside_column,
    shortcut_channels,
    shortcut_chunks,
    shortcut_sample,
    shortcut_row,
    shortcut_column,
    shortcut_weight_row,
    shortcut_beside_channels,
    shortcut_beside_chunks,
    shortcut_beside_sample,
    shortcut_beside_row,
    shortcut_beside_column,
    add_units,  # from a sample of add to the next, in ADD_UNIT elements
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    FEW: tl.constexpr,
    FAR: tl.constexpr,
    RAGGED: tl.constexpr,
    HOLES: tl.constexpr,
    UNIT: tl.constexpr,
    ADD_UNIT: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # Grid: (tiles of BM channels times tiles of BN pixels, splits). Those of the same pixels run side by side.
    cout = cout_units * UNIT
    tiles = tl.cdiv(cout, BM)
    n = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
    m = (tl.program_id(0) // tiles) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    lo = split * steps // splits
    hi = (split + 1) * steps // splits
    live = m < pixels
    b = m // (out_height * out_width)
    p = m - b * (out_height * out_width)
    oh = p // out_width
    ow = p - oh * out_width
    h = oh * STRIDE - before
    w = ow * STRIDE - before
    end = x_chunks * (K * K)
    if PDL:
        if not RAGGED:  # steps follow one another in a row of weights
            row = tl.minimum(n, cout - 1)
            if beside is None:
                _prefetch(weight, row, weight_row * _GROUP, lo * BK, tl.minimum(hi, end) * BK, BK)
            if shortcut is not None:
                start = end + (beside_chunks * (K * K) if beside is not None else 0)
                first = tl.maximum(lo, start) - start
                _prefetch(
                    shortcut_weight, row, shortcut_weight_row * _GROUP, first * BK, (hi - start) * BK, BK
                )
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    acc = tl.zeros((BM, BN), tl.float32)
    acc = _accumulate(
        acc, x, weight, tl.minimum(lo, end), tl.minimum(hi, end), x_chunks, n, b, h, w, live,
        x_channels, cout, height, width, x_sample, x_row, x_column, x_channel, weight_row, weight_tap,
        K, UPSAMPLE, FEW, FAR, RAGGED, HOLES, PRECISION, BK,
    )  # fmt: skip
    if beside is not None:
        start = end
        end += beside_chunks * (K * K)
        acc = _accumulate(
            acc, beside, weight + x_channels // _GROUP * _GROUP, tl.maximum(lo, start) - start,
            tl.minimum(hi, end) - start, beside_chunks, n, b, h, w, live,
            beside_channels, cout, height, width, beside_sample, beside_row, beside_column, 1, weight_row, weight_tap,
            K, UPSAMPLE, False, FAR, RAGGED, HOLES, PRECISION, BK,
        )  # fmt: skip
    if shortcut is not None:
        start = end
        end += shortcut_chunks
        acc = _accumulate(
            acc, shortcut, shortcut_weight, tl.maximum(lo, start) - start, tl.minimum(hi, end) - start, shortcut_chunks,
            n, b, oh, ow, live,
            shortcut_channels, cout, out_height, out_width, shortcut_sample, shortcut_row, shortcut_column,
            1, shortcut_weight_row, 0, 1, False, False, FAR, RAGGED, HOLES, PRECISION, BK,
        )  # fmt: skip
    if shortcut_beside is not None:
        start = end
        end += shortcut_beside_chunks
        acc = _accumulate(
            acc, shortcut_beside, shortcut_weight + shortcut_channels // _GROUP * _GROUP, tl.maximum(lo, start) - start,
            tl.minimum(hi, end) - start, shortcut_beside_chunks, n, b, oh, ow, live,
            shortcut_beside_channels, cout, out_height, out_width, shortcut_beside_sample, shortcut_beside_row,
            shortcut_beside_column, 1, shortcut_weight_row, 0, 1, False, False, FAR, RAGGED, HOLES, PRECISION, BK,
        )  # fmt: skip

    if PARTS:
        # The last group of 4 is written whole, with whatever stands behind COUT.
        quads = (cout + (_QUAD - 1)) // _QUAD
        to = ((split * quads + n // _QUAD)[:, None] * pixels + m[None, :]) * _QUAD + (n % _QUAD)[:, None]
        tl.store(out + to, acc, mask=(n < quads * _QUAD)[:, None] & live[None, :])
    else:
        known = n < cout
        inside = known[:, None] & live[None, :]
        to = m.to(tl.int64)[None, :] * cout + n[:, None]
        if bias is not None:
            acc += tl.load(bias + n, mask=known, other=0.0).to(tl.float32)[:, None]
        if add is not None:
            at = b.to(tl.int64)[None, :] * (add_units * ADD_UNIT) + n[:, None]
            acc += tl.load(add + at, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            acc += tl.load(residual + to, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + to, (acc * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["pixels", "total", "add_row", "scale_row", "shift_row"])
def finish_kernel(
    parts,  # float32 [SPLITS, C / 4, total, 4]
    bias,  # [C] or None
    add,  # [B, C] or None
    residual,  # [B, H, W, C] or None
    skip,  # [B, H, W, C_SKIP] or None: stands behind raw in the norm
    norm_weight,  # [C + C_SKIP] or None
    norm_bias,
    scale,  # [B, C + C_SKIP] or None
    shift,
    raw,  # [B, H, W, C]
    normed,  # [B, H, W, C + C_SKIP], or None without a norm
    factor,  # 1 / output_scale
    eps,
    pixels,  # H * W
    total,  # B * H * W
    add_row,  # from a sample to the next
    scale_row,
    shift_row,
    C: tl.constexpr,
    C_SKIP: tl.constexpr,
    D: tl.constexpr,  # channels of a program: a group, or CHANNELS without a norm
    SPLITS: tl.constexpr,
    ACT: tl.constexpr,
    PDL: tl.constexpr,
    AT_ONCE: tl.constexpr,  # parts
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Grid: (groups, B); without a norm (blocks of channels times blocks of pixels, B).
    blocks: tl.constexpr = (C + C_SKIP + D - 1) // D
    block = tl.program_id(0)
    b = tl.program_id(1)
    lane = tl.arange(0, CHANNELS)
    c = block % blocks * D + lane
    p = block // blocks * PIXELS + tl.arange(0, PIXELS)
    known = (lane < D) & (c < C + C_SKIP)
    own = known & (c < C)
    inside = (p < pixels)[:, None] & known[None, :]
    here = (p < pixels)[:, None] & own[None, :]
    m = b * pixels + p
    # What no kernel writes comes before the wait.
    offset = tl.zeros((CHANNELS,), tl.float32)
    if bias is not None:
        offset = tl.load(bias + c, mask=own, other=0.0).to(tl.float32)
    if normed is not None:
        gain = tl.full((CHANNELS,), 1.0, tl.float32)
        if norm_weight is not None:
            gain = tl.load(norm_weight + c, mask=known, other=0.0).to(tl.float32)
        centre = tl.zeros((CHANNELS,), tl.float32)
        if norm_bias is not None:
            centre = tl.load(norm_bias + c, mask=known, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    quads: tl.constexpr = (C + _QUAD - 1) // _QUAD
    at = ((c // _QUAD)[None, :] * total + m[:, None]) * _QUAD + (c % _QUAD)[None, :]
    sums = tl.zeros((AT_ONCE, PIXELS, CHANNELS), tl.float32)
    for first in tl.static_range(0, SPLITS, AT_ONCE):  # the loads of all are under way together
        part = first + tl.arange(0, AT_ONCE)
        wanted = here[None, :, :] & (part < SPLITS)[:, None, None]
        sums += tl.load(
            parts + (part * (quads * _QUAD) * total)[:, None, None] + at[None, :, :], mask=wanted, other=0.0
        )
    value = tl.sum(sums, axis=0)

    if add is not None:
        offset += tl.load(add + b.to(tl.int64) * add_row + c, mask=own, other=0.0).to(tl.float32)
    value += offset[None, :]
    to = m[:, None] * C + c[None, :]
    if residual is not None:
        value += tl.load(residual + to, mask=here, other=0.0).to(tl.float32)
    rounded = (value * factor).to(raw.dtype.element_ty)
    tl.store(raw + to, rounded, mask=here)

    if normed is not None:
        v = rounded.to(tl.float32)
        if skip is not None:
            behind = inside & (c >= C)[None, :]
            other = tl.load(skip + (m[:, None] * C_SKIP + (c - C)[None, :]), mask=behind, other=0.0)
            v = tl.where(own[None, :], v, other.to(tl.float32))
        count = (D * pixels).to(tl.float32)
        v = tl.where(inside, v, 0.0)
        v = tl.where(inside, v - tl.sum(tl.sum(v, axis=1), axis=0) / count, 0.0)
        gain *= tl.rsqrt(tl.sum(tl.sum(v * v, axis=1), axis=0) / count + eps)
        if scale is not None:
            more = 1.0 + tl.load(scale + b.to(tl.int64) * scale_row + c, mask=known, other=0.0).to(tl.float32)
            gain *= more
            centre *= more
        if shift is not None:
            centre += tl.load(shift + b.to(tl.int64) * shift_row + c, mask=known, other=0.0).to(tl.float32)
        z = v * gain[None, :] + centre[None, :]
        if ACT:
            z = _silu(z)
        tl.store(
            normed + (m[:, None] * (C + C_SKIP) + c[None, :]), z.to(normed.dtype.element_ty), mask=inside
        )
