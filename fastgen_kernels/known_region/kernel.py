"""Known pixels put into a noisy state as one Triton kernel, in place; bound by memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def known_region_kernel(
    x,  # float32 [B, C, H, W], in place
    y,  # [B or 2B, C, H, W], any float type, contiguous or channels-last, in place
    known,  # float32 [B, C, H, W]
    keep,  # float32 [B, C, H, W]
    noise,  # float32 [B, C, H, W]
    levels,  # float32 [B, 3]
    direction,  # float32 [B, C], or None
    batch,  # B
    pixels,  # H * W
    C: tl.constexpr,
    GUIDED: tl.constexpr,  # y holds 2B samples
    CHANNELS_LAST: tl.constexpr,  # y; the state never is
    BLOCK: tl.constexpr,
):
    # Grid: (tiles of a plane, B). A program has all channels of its pixels, so that what a direction mixes is read
    # before any of it is written.
    b = tl.program_id(1)
    alpha, sigma, scale = tl.load(levels + 3 * b), tl.load(levels + 3 * b + 1), tl.load(levels + 3 * b + 2)
    if alpha == alpha:  # a sample without a level is left alone
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = pixel < pixels
        base = b.to(tl.int64) * C * pixels
        y_base = y + base
        along = tl.zeros((BLOCK,), tl.float32)
        length = 0.0  # of the direction, squared
        if direction is not None:
            for c in range(C):
                part = tl.load(direction + b * C + c)
                length += part * part
                at = base + c * pixels + pixel
                there = tl.load(x + at, mask=mask, other=0.0)
                image = tl.load(known + at, mask=mask, other=0.0)
                fresh = tl.load(noise + at, mask=mask, other=0.0)
                along += part * (alpha * image + sigma * fresh - there)
        for c in range(C):
            at = base + c * pixels + pixel
            there = tl.load(x + at, mask=mask, other=0.0)
            image = tl.load(known + at, mask=mask, other=0.0)
            fresh = tl.load(noise + at, mask=mask, other=0.0)
            share = tl.load(keep + at, mask=mask, other=0.0)
            target = alpha * image + sigma * fresh
            if direction is not None:
                target = tl.where(length > 0.0, there + tl.load(direction + b * C + c) * along, target)
            mixed = there + share * (target - there)
            out = tl.where(share == 0.0, there, tl.where(share == 1.0, target, mixed))
            tl.store(x + at, out, mask=mask)
            scaled = (scale * out).to(y.dtype.element_ty)
            if CHANNELS_LAST:
                to = pixel * C + c
            else:
                to = c * pixels + pixel
            tl.store(y_base + to, scaled, mask=mask)
            if GUIDED:
                tl.store(y + (b + batch).to(tl.int64) * C * pixels + to, scaled, mask=mask)


@dataclass(frozen=True)
class Launch:
    """A launch configuration: block / (32 * warps) pixels a thread."""

    block: int
    num_warps: int


MANY_PROGRAMS = 512  # from here on an H200's 132 multiprocessors have several blocks each
LARGE = Launch(512, 4)  # 128-bit accesses of contiguous tensors
SMALL = Launch(128, 1)  # latency


def choose_launch(batch: int, pixels: int) -> Launch:
    """The launch for `batch` samples whose planes have so many pixels."""
    return LARGE if batch * triton.cdiv(pixels, LARGE.block) >= MANY_PROGRAMS else SMALL


def launch(
    x: Tensor, y: Tensor, known: Tensor, keep: Tensor, noise: Tensor, levels: Tensor, direction: Tensor | None
) -> None:
    """Launch the kernel on arguments that `known_region_out` has checked."""
    batch, channels, height, width = x.shape
    config = choose_launch(batch, height * width)
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments live on
        known_region_kernel[(triton.cdiv(height * width, config.block), batch)](
            x,
            y,
            known,
            keep,
            noise,
            levels,
            direction,
            batch,
            height * width,
            C=channels,
            GUIDED=y.shape[0] != batch,
            CHANNELS_LAST=not y.is_contiguous(),
            BLOCK=config.block,
            num_warps=config.num_warps,
            # Known pixels at the last step are alpha * known: a contracted product would round otherwise than PyTorch.
            enable_fp_fusion=False,
        )
