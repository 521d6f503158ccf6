"""The universal reverse step as one Triton kernel, in place.

A pointwise kernel, bound by memory: per element it reads the state, the network's output and the history
slots that its row uses, and writes the state, at most one slot and the next network input. What a row does
not use costs a uniform branch or a false mask. Only layout, guidance, the number of slots and learned
variance are compile-time choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..noise import STREAMS
from ..noise.kernel import normals_tile
from . import row

_P, _Q, _GUIDANCE, _CLIP, _NEXT_SCALE = (
    tl.constexpr(word) for word in (row.P, row.Q, row.GUIDANCE, row.CLIP, row.NEXT_SCALE)
)
_SLOT, _NOISE_STEP, _NEXT = (tl.constexpr(word) for word in (row.SLOT, row.NOISE_STEP, row.NEXT))
_A, _B = tl.constexpr(row.A), tl.constexpr(row.B)
_LOW, _HIGH = tl.constexpr(row.LOG2_STD_MIN), tl.constexpr(row.LOG2_STD_MAX)
_X, _X0, _F, _Z, _H = (tl.constexpr(term) for term in (row.X, row.X0, row.F, row.Z, row.H))
_ROW_WORDS = tl.constexpr(row.ROW_WORDS)
_STEP_STREAM = tl.constexpr(STREAMS["step"])


@triton.jit
def _word(words, index: tl.constexpr):
    """An integer word of a row."""
    return tl.load((words + index).to(tl.pointer_type(tl.int32)))


@triton.jit
def _history(slot_values, element, mask, words, K: tl.constexpr):
    """Slot K's coefficients in x' and in the slot that is written, and its values.

    Masked, not multiplied by zero: an unused slot may hold anything, and is not worth its traffic.
    """
    a = tl.load(words + _A + _H + K)
    b = tl.load(words + _B + _H + K)
    return a, b, tl.load(slot_values + element, mask=mask & ((a != 0.0) | (b != 0.0)), other=0.0)


@triton.jit
def reverse_step_kernel(
    x,  # float32 [B, C, H, W], in place
    h,  # float32 [K, B, C, H, W], in place; h[k] contiguous
    F,  # [B or 2B, C or 2C, H, W], contiguous or channels-last
    y,  # [B or 2B, C, H, W], F's type and layout
    rows,  # float32 [B, 32]
    cursor,  # int32 [B]
    seeds,  # int64 [B]
    batch,  # B
    n,  # C * H * W
    pixels,  # H * W
    plane,  # elements from h[k] to h[k + 1]
    C: tl.constexpr,
    K: tl.constexpr,  # history slots, 0 .. 4
    GUIDED: tl.constexpr,  # F and y hold 2B samples
    LEARNED: tl.constexpr,  # 0, 1, 2: F has V behind its first C channels
    CHANNELS_LAST: tl.constexpr,  # F and y; the state never is
    BLOCK: tl.constexpr,
):
    # Grid: (tiles of a sample, B). `rows` is a copy gathered for this step, so that a sample's programs may
    # all store the same next cursor: none of them reads what another writes.
    b = tl.program_id(1)
    words = rows + b * _ROW_WORDS

    if CHANNELS_LAST:
        # A tile lies within one channel, so that the state and its noise stay in contiguous blocks of 4.
        tiles = tl.cdiv(pixels, BLOCK)
        channel = tl.program_id(0) // tiles
        first_pixel = (tl.program_id(0) % tiles) * BLOCK
        pixel = first_pixel + tl.arange(0, BLOCK)
        mask = pixel < pixels
        first = channel * pixels + first_pixel
        element = channel * pixels + pixel
        f_element = pixel * (2 * C if LEARNED else C) + channel
        v_element = f_element + C
        y_element = pixel * C + channel
    else:
        first = tl.program_id(0) * BLOCK
        element = first + tl.arange(0, BLOCK)
        mask = element < n
        f_element = element
        v_element = element + n
        y_element = element

    # Every load of a tensor stands before the noise and before any store: the compiler moves no load over a store that
    # may write what it reads, nor over a branch, and a program would wait for memory four times instead of once.
    base = b.to(tl.int64) * n
    f_stride = n * 2 if LEARNED else n
    f_base = F + b.to(tl.int64) * f_stride
    xv = tl.load(x + base + element, mask=mask, other=0.0)
    fv = tl.load(f_base + f_element, mask=mask, other=0.0).to(tl.float32)
    if GUIDED:
        unconditional = F + (b + batch).to(tl.int64) * f_stride
        uv = tl.load(unconditional + f_element, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(words + _GUIDANCE)
    slot_values = h + base
    if K > 0:
        a_h0, b_h0, h0 = _history(slot_values, element, mask, words, 0)
    if K > 1:
        slot_values += plane
        a_h1, b_h1, h1 = _history(slot_values, element, mask, words, 1)
    if K > 2:
        slot_values += plane
        a_h2, b_h2, h2 = _history(slot_values, element, mask, words, 2)
    if K > 3:
        slot_values += plane
        a_h3, b_h3, h3 = _history(slot_values, element, mask, words, 3)
    p, q, clip = tl.load(words + _P), tl.load(words + _Q), tl.load(words + _CLIP)
    ax, a0, af = tl.load(words + _A + _X), tl.load(words + _A + _X0), tl.load(words + _A + _F)
    az = tl.load(words + _A + _Z)
    noisy = az != 0.0  # the same for a whole sample
    if K > 0:
        bx, b0, bf = tl.load(words + _B + _X), tl.load(words + _B + _X0), tl.load(words + _B + _F)
        bz = tl.load(words + _B + _Z)
        noisy = noisy | (bz != 0.0)
    if LEARNED:
        v = tl.load(f_base + v_element, mask=mask & noisy, other=0.0).to(tl.float32)

    if GUIDED:
        fv = uv + weight * (fv - uv)
    x0 = p * xv + q * fv
    # A NaN stays a NaN, as in PyTorch: a broken image should look broken.
    x0 = tl.maximum(x0, -clip, propagate_nan=tl.PropagateNan.ALL)
    x0 = tl.minimum(x0, clip, propagate_nan=tl.PropagateNan.ALL)
    out = ax * xv + a0 * x0 + af * fv
    if K > 0:
        kept = bx * xv + b0 * x0 + bf * fv
        out += a_h0 * h0
        kept += b_h0 * h0
    if K > 1:
        out += a_h1 * h1
        kept += b_h1 * h1
    if K > 2:
        out += a_h2 * h2
        kept += b_h2 * h2
    if K > 3:
        out += a_h3 * h3
        kept += b_h3 * h3

    z = tl.zeros((BLOCK,), tl.float32)
    if noisy:
        z = normals_tile(tl.load(seeds + b), _word(words, _NOISE_STEP), _STEP_STREAM, first, BLOCK)
        if LEARNED == 1:
            low, high = tl.load(words + _LOW), tl.load(words + _HIGH)
            z *= tl.exp2(low + (v * 0.5 + 0.5) * (high - low))
        if LEARNED == 2:
            z *= tl.sqrt(tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL))
    out += az * z
    if K > 0:
        kept += bz * z

    # The row's last words, from the cache.
    next_scale, next_row = tl.load(words + _NEXT_SCALE), _word(words, _NEXT)
    if K > 0:
        slot = _word(words, _SLOT)
        tl.store(h + slot.to(tl.int64) * plane + base + element, kept, mask=mask & (slot >= 0) & (slot < K))
    tl.store(x + base + element, out, mask=mask)
    scaled = (next_scale * out).to(y.dtype.element_ty)
    tl.store(y + base + y_element, scaled, mask=mask)
    if GUIDED:
        tl.store(y + (b + batch).to(tl.int64) * n + y_element, scaled, mask=mask)
    tl.store(cursor + b, next_row)


@dataclass(frozen=True)
class Launch:
    """A launch configuration: block / (32 * warps) elements a thread, at least 4: they share Philox words."""

    block: int
    num_warps: int


# From this many programs at the large tile on, an H200's 132 multiprocessors have several blocks each.
MANY_PROGRAMS = 512
LARGE = Launch(
    512, 4
)  # 128-bit accesses of contiguous tensors, and enough bytes in flight to reach memory's bandwidth
SMALL = Launch(128, 1)  # latency: a 3x32x32 image becomes 24 programs rather than 6


def choose_launch(batch: int, n: int) -> Launch:
    """The launch for `batch` samples of n elements."""
    return LARGE if batch * triton.cdiv(n, LARGE.block) >= MANY_PROGRAMS else SMALL


def launch(
    x: Tensor, h: Tensor, F: Tensor, y: Tensor, rows: Tensor, cursor: Tensor, seeds: Tensor, learned: int
) -> None:
    """Launch the kernel on arguments that `reverse_step_out` has checked."""
    batch, channels, height, width = x.shape
    pixels = height * width
    n = channels * pixels
    channels_last = not F.is_contiguous()
    config = choose_launch(batch, n)
    tiles = channels * triton.cdiv(pixels, config.block) if channels_last else triton.cdiv(n, config.block)
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        reverse_step_kernel[(tiles, batch)](
            x,
            h,
            F,
            y,
            rows,
            cursor,
            seeds,
            batch,
            n,
            pixels,
            h.stride(0) if h.shape[0] else 0,
            C=channels,
            K=h.shape[0],
            GUIDED=F.shape[0] != batch,
            LEARNED=learned,
            CHANNELS_LAST=channels_last,
            BLOCK=config.block,
            num_warps=config.num_warps,
            enable_fp_fusion=True,
        )
