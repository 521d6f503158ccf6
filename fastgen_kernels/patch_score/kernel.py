"""The discriminator's last layer in Triton: a patch convolution with one output channel, and its mean.

As a product of patches by channels it would be all padding, and read each pixel 16 times. So every pixel is multiplied
by the 16 taps at once, a product with 16 columns that reads it once, and the 16 products of each patch, float32, are
added up from the L2 cache: into a map of patches, or straight into an image's mean. No atomics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..patch_conv.kernel import ready
from ..patch_conv.layout import (
    GROUP,
    TAPS,
    group_strides,
    input_precision,
    output_format,
    output_shape,
    pack_weight,
    padded,
)

_GROUP = tl.constexpr(GROUP)
_TAPS = tl.constexpr(TAPS)


@triton.jit
def taps_kernel(
    x,  # [B, C, H, W], a pixel's channels together
    weight,  # [1, 4, 4, CP]
    products,  # float32 [16, columns]: of tap and pixel, B * H * W of them
    pixels,  # B * H * W
    columns,  # pixels rounded up to a multiple of BM
    H,
    W,
    x_sample,  # strides of x in groups of 8 elements
    x_row,
    x_column,
    C: tl.constexpr,
    CP: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    # Grid: tiles of BM pixels.
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    tap = tl.arange(0, _TAPS)
    b = (m // (H * W)).to(tl.int64)
    p = m % (H * W)
    corner = (b * x_sample + (p // W * x_row + p % W * x_column)) * _GROUP
    acc = tl.zeros((BM, _TAPS), tl.float32)
    for c0 in range(0, CP, BK):
        c = c0 + k
        mask = (m < pixels)[:, None] & (c < CP)[None, :]
        values = tl.load(x + (corner[:, None] + c[None, :]), mask=mask, other=0.0)
        taps = tl.load(weight + (tap[None, :] * CP + c[:, None]), mask=(c < CP)[:, None], other=0.0)
        if C != CP:
            values = tl.where((c < C)[None, :], values, 0.0)
            taps = tl.where((c < C)[:, None], taps, 0.0)
        acc = tl.dot(values, taps, acc, input_precision=PRECISION)
    # Beyond the last pixel lie zeros, which nobody reads.
    tl.store(products + (tap.to(tl.int64)[None, :] * columns + m[:, None]), acc)


@triton.jit
def _patches(products, columns, b, p, H, W, OW, STRIDE: tl.constexpr, mask):
    """Sums over the 16 taps of patches p of sample b."""
    h = p // OW * STRIDE - 1
    w = p % OW * STRIDE - 1
    first = b * (H * W)
    total = tl.zeros(p.shape, tl.float32)
    for tap in tl.static_range(_TAPS):
        ih = h + tap // 4
        iw = w + tap % 4
        inside = mask & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
        total += tl.load(
            products + (first + tap * columns.to(tl.int64) + (ih * W + iw)), mask=inside, other=0.0
        )
    return total


@triton.jit
def patches_kernel(
    products,  # float32 [16, columns]
    bias,  # [1] or None
    y,  # [B, 1, OH, OW], dense
    patches,  # B * OH * OW
    columns,
    H,
    W,
    OH,
    OW,
    slope,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid: tiles of BLOCK patches.
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = m < patches
    b = (m // (OH * OW)).to(tl.int64)
    total = _patches(products, columns, b, m % (OH * OW), H, W, OW, STRIDE, mask)
    if bias is not None:
        total += tl.load(bias).to(tl.float32)
    out = tl.where(total >= 0.0, total, total * slope)
    tl.store(y + m, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def score_kernel(
    products,  # float32 [16, columns]
    bias,  # [1] or None
    y,  # float32 [B]
    patches,  # OH * OW
    columns,
    H,
    W,
    OW,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid: B. One program adds up a sample's patches, always in the same order.
    b = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, patches, BLOCK):
        p = first + tl.arange(0, BLOCK)
        total += _patches(products, columns, b, p, H, W, OW, STRIDE, p < patches)
    mean = tl.sum(total) / patches
    if bias is not None:
        mean += tl.load(bias).to(tl.float32)
    tl.store(y + b, mean)


@dataclass(frozen=True)
class Launch:
    """Pixels of a program of `taps_kernel`, and its warps."""

    pixels: int
    num_warps: int


# 8 KiB of pixels a step and program, four steps in flight: what it takes to keep memory busy.
LARGE = Launch(64, 4)
# Latency: one pair's 31x31 pixels become 61 programs rather than 16.
SMALL = Launch(16, 1)
MANY_PROGRAMS = 132  # an H200's multiprocessors
PATCHES = 256  # of a program of patches_kernel: two a thread
SCORE_PATCHES = 1024  # of a step of score_kernel: a 256x256 image has 900


def choose_launch(pixels: int) -> Launch:
    """The launch of `taps_kernel` for so many pixels."""
    return LARGE if triton.cdiv(pixels, LARGE.pixels) >= MANY_PROGRAMS else SMALL


def _tap_products(x: Tensor, weight: Tensor) -> Tensor:
    """float32 [16, columns]: every tap times every pixel of x, as the kernels read it."""
    batch, inputs, height, width = x.shape
    pixels = batch * height * width
    config = choose_launch(pixels)
    columns = triton.cdiv(pixels, config.pixels) * config.pixels
    products = torch.empty(TAPS, columns, dtype=torch.float32, device=x.device)
    wide = padded(inputs)
    step = 128 // x.element_size()  # a line of the cache; at least 16, a tensor core's shortest product
    taps_kernel[(columns // config.pixels,)](
        x,
        pack_weight(weight),
        products,
        pixels,
        columns,
        height,
        width,
        *group_strides(x),
        C=inputs,
        CP=wide,
        PRECISION=input_precision(x.dtype),
        BM=config.pixels,
        BK=min(step, max(16, triton.next_power_of_2(wide))),
        num_warps=config.num_warps,
        num_stages=4,
        enable_fp_fusion=True,
    )
    return products


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, negative_slope: float | None
) -> Tensor:
    """The convolution of checked arguments with one output channel."""
    shape = output_shape(x, weight, stride)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x, weight))
    batch, _, out_height, out_width = shape
    patches = batch * out_height * out_width
    with torch.cuda.device_of(x):
        products = _tap_products(ready(x), weight)
        patches_kernel[(triton.cdiv(patches, PATCHES),)](
            products,
            bias,
            y,
            patches,
            products.shape[1],
            x.shape[2],
            x.shape[3],
            out_height,
            out_width,
            1.0 if negative_slope is None else negative_slope,
            STRIDE=stride,
            BLOCK=PATCHES,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return y


def score(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """float32 [B]: mean over the patches of a checked one-channel convolution."""
    batch, _, out_height, out_width = output_shape(x, weight, stride)
    means = torch.empty(batch, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        products = _tap_products(ready(x), weight)
        score_kernel[(batch,)](
            products,
            bias,
            means,
            out_height * out_width,
            products.shape[1],
            x.shape[2],
            x.shape[3],
            out_width,
            STRIDE=stride,
            BLOCK=SCORE_PATCHES,
            num_warps=8,
            enable_fp_fusion=True,
        )
    return means
