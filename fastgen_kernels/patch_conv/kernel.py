"""The patch convolution in Triton: an implicit matrix product, [B * OH * OW, 16 * C] by [16 * C, Cout].

Two forms. On tensor descriptors (sm_90 on): the channels-last input is viewed, without a copy, as
[B, H/2, 2, W/2, 2C], in which what lies under one of the 4x4 taps of a block of patches is a box; the hardware copies
boxes, and fills the padding with zeros. By pointers, for everything else, small images too: each patch's pixels are
gathered under a mask. One output channel is another matter (`patch_score/kernel.py`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..op import interpreted
from .layout import (
    GROUP,
    TAPS,
    channels_last,
    group_strides,
    input_precision,
    is_ready,
    output_format,
    output_shape,
    pack_weight,
    padded,
)
from .plan import (
    STEP_BYTES,
    WASTE,
    Form,
    Tile,
    choose_tile,
    count_blocks,
    count_programs,
    descriptors_hold,
)

_GROUP = tl.constexpr(GROUP)
_TAPS = tl.constexpr(TAPS)


@triton.jit
def _finish(acc, bias, n, slope, COUT: tl.constexpr, TYPE: tl.constexpr, PATCHES: tl.constexpr):
    """acc plus bias, LeakyReLU, rounded once. acc: sums of channels n and of patches, which are its axis PATCHES."""
    if bias is not None:
        acc += tl.load(bias + n, mask=n < COUT, other=0.0).to(tl.float32).expand_dims(PATCHES)
    return tl.where(acc >= 0.0, acc, acc * slope).to(TYPE)


@triton.jit
def descriptor_kernel(
    x,  # descriptor: [B, H/2, 2, W/2, 2C] in boxes [1, TH, 1, TW, BK]; stride 1: [B, H, W, C] in boxes [1, TH, TW, BK]
    weight,  # descriptor: [COUT, 16 * C] in boxes [BN, BK]
    bias,  # [COUT] or None
    y,  # descriptor: [B, OH, OW, COUT] in boxes [1, TH, TW, BN]
    OH,
    OW,
    slope,
    C: tl.constexpr,
    COUT: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,  # divides C
):
    # Grid: (blocks of TH x TW patches) * (tiles of BN channels). Those of one block run side by side and share its
    # pixels in the L2 cache.
    pid = tl.program_id(0)
    tiles: tl.constexpr = (COUT + BN - 1) // BN
    n0 = (pid % tiles) * BN
    block = pid // tiles
    across = tl.cdiv(OW, TW)
    down = tl.cdiv(OH, TH)
    w0 = (block % across) * TW
    h0 = (block // across % down) * TH
    b = block // across // down

    chunks: tl.constexpr = C // BK
    # Channels by patches: what is reshaped, the box, and then transposed is read by sm_90's tensor cores where it lies,
    # in shared memory. As the left factor of patches by channels it would pass through registers, with a wait a step.
    acc = tl.zeros((BN, TH * TW), tl.float32)
    for i in range(_TAPS * chunks):
        tap = i // chunks
        c0 = (i % chunks) * BK
        if STRIDE == 2:
            # Tap k of patch o lies on row 2 * o + k - 1 = 2 * (o + (k + 1) // 2 - 1) + (k + 1) % 2.
            kh = tap // 4 + 1
            kw = tap % 4 + 1
            box = x.load([b, h0 + kh // 2 - 1, kh % 2, w0 + kw // 2 - 1, (kw % 2) * C + c0])
        else:
            box = x.load([b, h0 + tap // 4 - 1, w0 + tap % 4 - 1, c0])
        pixels = box.reshape(TH * TW, BK)
        acc = tl.dot(weight.load([n0, i * BK]), pixels.T, acc, input_precision=PRECISION)

    out = _finish(acc, bias, n0 + tl.arange(0, BN), slope, COUT, y.dtype, PATCHES=1)
    y.store([b, h0, w0, n0], out.T.reshape(1, TH, TW, BN))


@triton.jit
def gather_kernel(
    x,  # [B, C, H, W], a pixel's channels together
    weight,  # [COUT, 4, 4, CP]
    bias,  # [COUT] or None
    y,  # [B, COUT, OH, OW], channels-last or contiguous
    patches,  # B * OH * OW
    H,
    W,
    OH,
    OW,
    x_sample,  # strides of x in groups of 8 elements, so that the compiler sees what divides them
    x_row,
    x_column,
    slope,
    C: tl.constexpr,
    CP: tl.constexpr,  # C rounded up to a multiple of 8; what lies beyond C may be anything
    COUT: tl.constexpr,
    STRIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # y
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # Grid: (tiles of BM patches) * (tiles of BN channels), ordered as in `descriptor_kernel`.
    pid = tl.program_id(0)
    tiles: tl.constexpr = (COUT + BN - 1) // BN
    n = (pid % tiles) * BN + tl.arange(0, BN)
    m = (pid // tiles) * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    b = (m // (OH * OW)).to(tl.int64)
    p = m % (OH * OW)
    h = p // OW * STRIDE - 1
    w = p % OW * STRIDE - 1
    # Row offset and column offset are added last, side by side: otherwise the loads are not seen to be 16 bytes wide.
    corner = (b * x_sample + (h * x_row + w * x_column)) * _GROUP

    acc = tl.zeros((BM, BN), tl.float32)
    for i in range(_TAPS * CP // BK):
        if CP % BK == 0:  # one tap a step
            tap = i // (CP // BK)
            c = (i % (CP // BK)) * BK + k
            ih = h + tap // 4
            iw = w + tap % 4
            inside = ((m < patches) & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W))[:, None]
            offset = (tap // 4 * x_row + tap % 4 * x_column) * _GROUP + c
        else:  # several taps a step
            tap = (i * BK + k) // CP
            c = (i * BK + k) % CP
            ih = h[:, None] + (tap // 4)[None, :]
            iw = w[:, None] + (tap % 4)[None, :]
            inside = (m < patches)[:, None] & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
            offset = (tap // 4 * x_row + tap % 4 * x_column) * _GROUP + c
        pixels = tl.load(x + (corner[:, None] + offset[None, :]), mask=inside, other=0.0)
        taps = tl.load(
            weight + (n[None, :] * (_TAPS * CP) + (i * BK + k)[:, None]), mask=(n < COUT)[None, :], other=0.0
        )
        if C != CP:  # after the load, which stays wide
            pixels = tl.where((c < C)[None, :], pixels, 0.0)
            taps = tl.where((c < C)[:, None], taps, 0.0)
        acc = tl.dot(pixels, taps, acc, input_precision=PRECISION)

    out = _finish(acc, bias, n, slope, COUT, y.dtype.element_ty, PATCHES=0)
    if CHANNELS_LAST:
        to = m.to(tl.int64)[:, None] * COUT + n[None, :]
    else:
        to = (b[:, None] * COUT + n[None, :]) * (OH * OW) + p[:, None]
    tl.store(y + to, out, mask=(m < patches)[:, None] & (n < COUT)[None, :])


@triton.jit
def pack_kernel(
    x,  # [B, C, rows, columns], any strides
    packed,  # [B, rows, columns, CP]
    rows,
    columns,
    C,
    x_sample,
    x_channel,
    x_row,
    x_column,
    CP: tl.constexpr,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
):
    # Grid: (B * rows * tiles of BLOCK pixels, tiles of BC channels). Zeros fill the channels from C on.
    tiles = tl.cdiv(columns, BLOCK)
    line = tl.program_id(0) // tiles
    w = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    b = (line // rows).to(tl.int64)
    h = (line % rows).to(tl.int64)
    start = b * x_sample + h * x_row
    offset = w.to(tl.int64)[:, None] * x_column + c.to(tl.int64)[None, :] * x_channel
    values = tl.load(x + (start + offset), mask=(w < columns)[:, None] & (c < C)[None, :], other=0.0)
    to = line.to(tl.int64) * columns * CP + (w[:, None] * CP + c[None, :])
    tl.store(packed + to, values, mask=(w < columns)[:, None] & (c < CP)[None, :])


PACKED_BYTES = 16_384  # of a program of pack_kernel: 128 a thread, in 16-byte accesses where x has them


def architecture(device: torch.device) -> int:
    """Compute capability of `device`: 80, 90, 100, ... The interpreter, which knows descriptors, counts as 90."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    return 90 if interpreted() else triton.runtime.driver.active.get_current_target().arch


def choose_form(x: Tensor, y: Tensor, stride: int, precision: str) -> Form:
    """Descriptors where the hardware has them, before sm_90 they would be emulated, and spill, and blocks are full."""
    # Without tensor cores every factor passes through registers, and boxes come in a layout that does not suit them.
    tensor_cores = x.dtype != torch.float32 or precision == "tf32"
    found = architecture(x.device)
    if not (tensor_cores and descriptors_hold(x, y, stride) and found >= 90):
        return "gather"
    tile = choose_tile(y, x.shape[1], "descriptor", precision, found)
    patches = y.numel() // y.shape[1]
    full = count_blocks(y, "descriptor", tile) * tile.patches <= WASTE * patches
    return "descriptor" if full else "gather"


def ready(x: Tensor) -> Tensor:
    """x [B, C, H, W] as the kernels read it, a pixel's channels together and padded with zeros: itself, or a copy."""
    if is_ready(x):
        return x
    batch, channels, height, width = x.shape
    wide = padded(channels)
    packed = x.new_empty(batch, height, width, wide)
    rows, columns = height, width
    if x.stride(2) == width * x.stride(3):  # one line an image, in whole tiles
        rows, columns = 1, height * width
    block_channels = min(64, triton.next_power_of_2(wide))
    block = min(PACKED_BYTES // (block_channels * x.element_size()), triton.next_power_of_2(columns))
    grid = (batch * rows * triton.cdiv(columns, block), triton.cdiv(wide, block_channels))
    with torch.cuda.device_of(x):
        pack_kernel[grid](
            x,
            packed,
            rows,
            columns,
            channels,
            x.stride(0),
            x.stride(1),
            x.stride(2),
            x.stride(3),
            CP=wide,
            BLOCK=block,
            BC=block_channels,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return packed.permute(0, 3, 1, 2)[:, :channels]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    negative_slope: float | None,
    form: Form | None = None,
) -> Tensor:
    """The convolution of checked arguments, several output channels. `form` overrides the choice, for tests."""
    shape = output_shape(x, weight, stride)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x, weight))
    slope = 1.0 if negative_slope is None else negative_slope
    precision = input_precision(x.dtype)
    x, weight = ready(x), pack_weight(weight)
    form = form or choose_form(x, y, stride, precision)
    tile = choose_tile(y, x.shape[1], form, precision, architecture(x.device))
    launch = _by_descriptors if form == "descriptor" else _by_pointers
    with torch.cuda.device_of(x):
        launch(x, weight, bias, y, stride, slope, precision, tile)
    return y


def _by_descriptors(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    stride: int,
    slope: float,
    precision: str,
    tile: Tile,
) -> None:
    (batch, inputs, height, width), (_, channels, out_height, out_width) = x.shape, y.shape
    step = STEP_BYTES["descriptor"] // x.element_size()
    row = x.stride(2)
    sample = x.stride(0) if batch > 1 else height * row
    if stride == 2:
        shape, strides = [height // 2, 2, width // 2, 2 * inputs], [2 * row, row, 2 * inputs, 1]
        box = [1, tile.height, 1, tile.width, step]
    else:
        shape, strides = [height, width, inputs], [row, inputs, 1]
        box = [1, tile.height, tile.width, step]
    terms, line = TAPS * inputs, out_width * channels
    descriptor_kernel[(count_programs(y, "descriptor", tile),)](
        TensorDescriptor(x, [batch, *shape], [sample, *strides], box),
        TensorDescriptor(weight, [channels, terms], [terms, 1], [tile.channels, step]),
        bias,
        TensorDescriptor(
            y,
            [batch, out_height, out_width, channels],
            [out_height * line, line, channels, 1],
            [1, tile.height, tile.width, tile.channels],
        ),
        out_height,
        out_width,
        slope,
        C=inputs,
        COUT=channels,
        STRIDE=stride,
        PRECISION=precision,
        TH=tile.height,
        TW=tile.width,
        BN=tile.channels,
        BK=step,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )


def _by_pointers(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    stride: int,
    slope: float,
    precision: str,
    tile: Tile,
) -> None:
    (_, inputs, height, width), (batch, channels, out_height, out_width) = x.shape, y.shape
    patches = batch * out_height * out_width
    gather_kernel[(count_programs(y, "gather", tile),)](
        x,
        weight,
        bias,
        y,
        patches,
        height,
        width,
        out_height,
        out_width,
        *group_strides(x),
        slope,
        C=inputs,
        CP=padded(inputs),
        COUT=channels,
        STRIDE=stride,
        CHANNELS_LAST=channels_last(y),
        PRECISION=precision,
        BM=tile.patches,
        BN=tile.channels,
        BK=STEP_BYTES["gather"] // x.element_size(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
