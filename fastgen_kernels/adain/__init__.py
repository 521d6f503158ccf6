"""Adaptive instance normalisation: AdaIN, StyleGAN's layer epilogue, and plain instance norm.

The maths stands in `reference.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..op import Budget, Op, custom_op, differentiate_through, direct, select
from . import cases, cpu, eager, reference

__all__ = ["OP", "adain"]

MAX_PIXELS = 2**24  # of a plane
MAX_STEP = 2**17  # elements from a pixel to the next: channels of a channels-last tensor
# What the other tensors may come in: x's type or the one that the work is done in.
BESIDE = {
    torch.float16: (torch.float16, torch.float32),
    torch.bfloat16: (torch.bfloat16, torch.float32),
    torch.float32: (torch.float32,),
    torch.float64: (torch.float64,),
}


def adain(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    style: Tensor | None = None,
    alpha: float = 1.0,
    eps: float = 1e-5,
    correction: int = 0,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    slope_before: float = 1.0,
    slope_after: float = 1.0,
) -> Tensor:
    """Give every plane (sample, channel) of x the mean and deviation of a style.

    With v = LeakyReLU(x + noise * noise_weight + bias), and v's mean and variance over a plane's pixels,

        y = LeakyReLU(alpha * (scale * (v - mean(v)) / sqrt(var(v) + eps) + shift) + (1 - alpha) * v)

    (Huang and Belongie 2017, eq. 8 and 14; what stands before the statistics and its order: StyleGAN, Karras et
    al. 2019). The style is `scale` and `shift`, or `std` and `mean`, or a feature map; with none of them this is
    instance normalisation.

    Args:
        x: [B, C, H, W] in float32, float16 or bfloat16 (float64 on the PyTorch path); the content. Contiguous or
            channels-last, or a slice of such a tensor along B, C or both.
        scale: [B, C], [1, C] or [C], any strides; 1 if None. StyleGAN's affine layer gives scale - 1.
        shift: as `scale`; 0 if None.
        mean, std: the style's statistics, both: other names of `shift` and `scale`.
        style: [B or 1, C, H', W'], laid out as x may be, of any size: its planes' mean and sqrt(var + eps).
        alpha: 0 leaves the content (v), 1 gives the style; in [0, 1].
        eps: added to variances, content's and style's; positive. StyleGAN has 1e-8.
        correction: 0: the variance is the mean square (the paper's Lua code, StyleGAN, `F.instance_norm`); 1: the
            unbiased one (`torch.var`; pytorch-AdaIN), of content and style. A plane of one pixel has variance 0.
        bias: [C], contiguous.
        noise: [B or 1, 1, H, W], planes contiguous; goes with `noise_weight`.
        noise_weight: [C], contiguous.
        slope_before: the LeakyReLU's negative slope before the statistics; 1 is no activation, 0.2 StyleGAN's.
        slope_after: the same of one behind all else; 0.2 for PatchGAN, 0 a ReLU.

    All tensors but x may be in x's type or in float32. The work is done in float32 (float64 for float64) and
    rounded once.

    Returns:
        [B, C, H, W] in x's type, contiguous, or channels-last where x's pixels do not follow each other in memory.

    Gradients flow to every tensor. A sample's bits do not depend on its batch.

    Raises:
        OperandError: naming the argument, what was expected and what was received.

    >>> content, style = torch.randn(1, 8, 16, 16), torch.randn(1, 8, 9, 9) * 3.0 + 1.0
    >>> y = adain(content, style=style)
    >>> torch.allclose(y.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    True
    """
    check.rank("x", x, 4, "[B, C, H, W]")
    if x.dtype not in BESIDE:
        check.dtype("x", x, tuple(BESIDE))
    _check_layout("x", x)
    if mean is not None or std is not None:
        if mean is None or std is None:
            check.fail("std" if std is None else "mean", "mean and std together", "None")
        if scale is not None or shift is not None:
            check.fail(
                "mean", "None beside scale or shift, of which mean and std are other names", "a tensor"
            )
        _check_row("mean", mean, x)
        _check_row("std", std, x)
        scale, shift = std, mean
    _check(
        x, scale, shift, style, alpha, eps, correction, bias, noise, noise_weight, slope_before, slope_after
    )
    if direct(x.device.type):
        return _plain(
            x,
            scale,
            shift,
            style,
            alpha,
            eps,
            correction,
            bias,
            noise,
            noise_weight,
            slope_before,
            slope_after,
        )
    return torch.ops.fastgen.adain(
        x, scale, shift, style, alpha, eps, correction, bias, noise, noise_weight, slope_before, slope_after
    )


def _check_row(name: str, value: Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        check.fail(name, "a torch.Tensor", type(value).__name__)
    batch, channels = x.shape[:2]
    if value.shape != (batch, channels) and value.shape not in ((1, channels), (channels,)):
        check.fail(name, f"shape [B, C] = {[batch, channels]}, [1, C] or [C]", list(value.shape))
    if value.dtype != x.dtype:
        check.dtype(name, value, BESIDE[x.dtype])
    _check_device(name, value, x)


def _check_device(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        check.fail(name, f"a tensor on {x.device}, where x is", f"one on {value.device}")


def _check_channels(name: str, value: Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != (x.shape[1],) or value.dtype != x.dtype:
        check.tensor(name, value, (x.shape[1],), BESIDE[x.dtype], x.device, "[C]")
    _check_device(name, value, x)
    check.contiguous(name, value)


def _check_layout(name: str, value: Tensor) -> None:
    """Pixels evenly spaced, and either they or the channels follow each other in memory, no further apart than a
    tile's offsets reach in int32."""
    _, channels, height, width = value.shape
    if height * width > MAX_PIXELS:
        check.fail(name, "at most 2^24 pixels in a plane", list(value.shape))
    if value.is_contiguous():
        return
    step = reference.pixel_stride(value)
    even = height == 1 or width == 1 or value.stride(2) == width * step
    follow = step == 1 or channels == 1 or value.stride(1) == 1
    received = f"strides {value.stride()}"
    if not (even and follow):
        check.fail(name, "a contiguous or channels-last tensor, or a slice of one along B or C", received)
    if step > MAX_STEP:
        check.fail(name, "at most 2^17 elements from a pixel to the next", received)
    if channels > 1 and value.stride(1) > 2 * MAX_PIXELS:
        check.fail(name, "at most 2^25 elements from a channel to the next", received)


def _check(
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
) -> None:
    """Everything but x itself."""
    if scale is not None:
        _check_row("scale", scale, x)
    if shift is not None:
        _check_row("shift", shift, x)
    if style is not None:
        if scale is not None or shift is not None:
            check.fail("style", "None beside scale, shift, mean or std", "a tensor")
        check.rank("style", style, 4, "[B or 1, C, H', W']")
        if style.shape[0] not in (1, x.shape[0]) or style.shape[1] != x.shape[1]:
            check.fail("style", f"shape [{x.shape[0]} or 1, {x.shape[1]}, H', W']", list(style.shape))
        check.dtype("style", style, BESIDE[x.dtype])
        _check_device("style", style, x)
        _check_layout("style", style)
    check.number("alpha", alpha, "a number in [0, 1]")
    check.number("eps", eps, "a positive number")
    check.number("correction", correction, "0 or 1")
    check.number("slope_before", slope_before)
    check.number("slope_after", slope_after)
    if not 0.0 <= alpha <= 1.0:
        check.fail("alpha", "a number in [0, 1]", alpha)
    if not 0.0 < eps < math.inf:
        check.fail("eps", "a positive number", eps)
    if correction not in (0, 1):
        check.fail("correction", "0 or 1", correction)
    if bias is not None:
        _check_channels("bias", bias, x)
    if (noise is None) != (noise_weight is None):
        check.fail(
            "noise_weight" if noise_weight is None else "noise", "noise and noise_weight together", "None"
        )
    if noise is not None and noise_weight is not None:
        _check_channels("noise_weight", noise_weight, x)
        check.rank("noise", noise, 4, "[B or 1, 1, H, W]")
        if noise.shape[0] not in (1, x.shape[0]) or noise.shape[1] != 1 or noise.shape[2:] != x.shape[2:]:
            check.fail("noise", f"shape {[f'{x.shape[0]} or 1', 1, *x.shape[2:]]}", list(noise.shape))
        check.dtype("noise", noise, BESIDE[x.dtype])
        _check_device("noise", noise, x)
        if not noise[:1].is_contiguous():
            check.fail("noise", "contiguous planes", f"strides {noise.stride()}")
    if not (math.isfinite(slope_before) and math.isfinite(slope_after)):
        name = "slope_after" if math.isfinite(slope_before) else "slope_before"
        check.fail(name, "a finite number", slope_after if name == "slope_after" else slope_before)


@custom_op("adain")
def _adain(
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
    run = _fused_call if select(x.device.type) == "triton" else _plain
    return run(
        x, scale, shift, style, alpha, eps, correction, bias, noise, noise_weight, slope_before, slope_after
    )


@_adain.register_fake
def _(
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
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=reference.memory_format(x))


differentiate_through(_adain, reference.adain, wrt=(0, 1, 2, 3, 7, 8, 9))


def _plain(x: Tensor, *others: Any) -> Tensor:
    """The PyTorch path: in place where no gradient is asked for."""
    if x.device.type != "cpu" or (
        torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, *others))
    ):
        return reference.adain(x, *others)
    return cpu.adain(x, *others)


def _fused_call(x: Tensor, *others: Any) -> Tensor:
    if x.dtype == torch.float64:
        check.fail(
            "x", "torch.float32, float16 or bfloat16 on the Triton path", f"{x.dtype}: use 'reference'"
        )
    from . import kernel

    return kernel.launch(x, *others)


def _fused(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    style: Tensor | None = None,
    alpha: float = 1.0,
    eps: float = 1e-5,
    correction: int = 0,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    slope_before: float = 1.0,
    slope_after: float = 1.0,
) -> Tensor:
    scale, shift = (scale if std is None else std), (shift if mean is None else mean)
    return _fused_call(
        x, scale, shift, style, alpha, eps, correction, bias, noise, noise_weight, slope_before, slope_after
    )


OP = Op(
    name="adain",
    outputs=("y",),
    function=adain,
    out=None,
    reference=reference.adain,
    fused=_fused,
    overload=torch.ops.fastgen.adain.default,
    decomposition=reference.adain,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    eager=eager.adain,
    # A thread of a tile in registers holds up to 32 elements and what is made of them, channels-last each of its 8
    # channels' statistics beside them. Two programs of 8 warps still fit a multiprocessor: 512 threads with 64 bytes
    # each in flight, which is what an H200's latency times its bandwidth asks of one.
    # What a program moves once a channel, 4 bytes at a time, counts here as if every thread did it: beside the few
    # pixels of an 8x8 plane, and beside a half-precision result, it looks like half of all.
    budget=Budget(registers=128, wide=0.4),
)
