"""Upsample, FIR filter, downsample, and what stands behind a convolution, in one pass: StyleGAN's resampling.

The maths stands in `reference.py`. Without a filter it is the epilogue alone, which StyleGAN2's modulated convolution
uses (`fastgen_kernels.modulated_conv`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..adain import BESIDE
from ..adain.reference import memory_format
from ..op import Budget, Op, custom_op, differentiate_through, direct, select
from ..patch_conv.reference import without_autocast
from . import cases, eager, reference

__all__ = ["OP", "check_epilogue", "upfirdn"]

MAX_ELEMENTS = 2**31  # of a sample, with zeros and padding: what int32 offsets reach
MAX_TAPS = 32
MAX_FACTOR = 16


def upfirdn(
    x: Tensor,
    filter: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0),
    gain: float = 1.0,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    act_gain: float = 1.0,
    post_scale: Tensor | None = None,
) -> Tensor:
    """Upsample x by zeros, filter it, downsample it; then scale, noise, bias, LeakyReLU and a second scale.

        v = downsample(FIR(pad(upsample(x)))) * gain
        y = LeakyReLU(v * scale + noise * noise_weight + bias) * act_gain * post_scale

    The blur of StyleGAN (Karras et al. 2019) and the resampling of StyleGAN2 (Karras et al. 2020) with the epilogue of
    its layers: scale is the demodulation, post_scale the style of the layer that follows.

    Args:
        x: [B, C, H, W] in float32, float16 or bfloat16 (float64 on the PyTorch path), any strides.
        filter: [T] in x's type or float32, contiguous, at most 32 taps; the same along rows and columns, convolved
            (flipped), not correlated. None: a single tap of 1.
        up: zeros behind every pixel, and 1; 1 to 16. down: every so manieth pixel is kept; 1 to 16.
        padding: rows and columns of zeros (before, after) of the upsampled image; negative ones crop it.
        gain: of the filter; up ** 2 keeps an upsampled image's brightness.
        scale: [B, C], rows contiguous. post_scale: the same.
        noise: [B or 1, 1, OH, OW], planes contiguous; goes with noise_weight.
        noise_weight: [C] or [1], contiguous.
        bias: [C], contiguous.
        slope: the LeakyReLU's negative slope; 1 is no activation.
        act_gain: sqrt(2) in StyleGAN2.

    All tensors but x may be in x's type or in float32. The work is done in float32 (float64 for float64) and rounded
    once. OH = (H * up + before + after - T) // down + 1.

    Returns:
        [B, C, OH, OW] in x's type, contiguous, or channels-last where x's pixels do not follow each other in memory.

    Gradients flow to every tensor. A sample's bits do not depend on its batch.

    Raises:
        OperandError: naming the argument, what was expected and what was received.

    >>> image, blur = torch.ones(1, 3, 4, 4), torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    >>> upfirdn(image, blur, up=2, padding=(2, 1), gain=4.0)[0, 0, 3]
    tensor([0.7500, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 0.7500])
    """
    check.rank("x", x, 4, "[B, C, H, W]")
    if x.dtype not in BESIDE:
        check.dtype("x", x, tuple(BESIDE))
    if filter is not None:
        check.rank("filter", filter, 1, "[T]")
        check.tensor("filter", filter, filter.shape, BESIDE[x.dtype], x.device, "[T]")
        check.contiguous("filter", filter)
        if len(filter) > MAX_TAPS:
            check.fail("filter", f"at most {MAX_TAPS} taps", len(filter))
    for name, value in (("up", up), ("down", down)):
        if type(value) is not int or not 1 <= value <= MAX_FACTOR:
            check.fail(name, f"an int from 1 to {MAX_FACTOR}", repr(value))
    known = isinstance(padding, (list, tuple)) and all(type(end) is int for end in padding)
    if not known or len(padding) != 2:
        check.fail("padding", "two ints, (before, after)", repr(padding))
    ends = (padding[0], padding[1])
    shape = reference.output_shape(x, filter, up, down, ends)
    if min(shape) < 1:
        check.fail("padding", "an output of at least one pixel", f"{list(shape)} of {list(ends)}")
    extents = [side * up + sum(max(end, 0) for end in ends) for side in x.shape[2:]]
    if x.shape[1] * math.prod(extents) >= MAX_ELEMENTS or _span(x) >= MAX_ELEMENTS:
        check.fail("x", "fewer than 2^31 elements a sample, with zeros and padding", list(x.shape))
    _number("gain", gain)
    check_epilogue(x, shape, scale, noise, noise_weight, bias, slope, act_gain, post_scale)
    run = _plain if direct(x.device.type) else torch.ops.fastgen.upfirdn
    return run(
        x, filter, up, down, ends, float(gain), scale, noise, noise_weight, bias, float(slope), float(act_gain),
        post_scale,
    )  # fmt: skip


def check_epilogue(
    x: Tensor,
    shape: tuple[int, int, int, int],
    scale: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    bias: Tensor | None,
    slope: float,
    act_gain: float,
    post_scale: Tensor | None,
) -> None:
    """OperandError unless what follows a result of `shape` [B, C, OH, OW], computed from x, fits it."""
    batch, channels, *sides = shape
    dtypes = BESIDE[x.dtype]
    for name, value in (("scale", scale), ("post_scale", post_scale)):
        if value is not None:
            check.tensor(name, value, (batch, channels), dtypes, x.device, "[B, C]")
            if channels > 1 and value.stride(1) != 1:
                check.fail(name, "a tensor whose rows are contiguous", f"strides {value.stride()}")
    if (noise is None) != (noise_weight is None):
        name = "noise_weight" if noise_weight is None else "noise"
        check.fail(name, "noise and noise_weight together", "None")
    if noise is not None and noise_weight is not None:
        check.rank("noise", noise, 4, "[B or 1, 1, H, W]")
        if len(noise) not in (1, batch) or list(noise.shape[1:]) != [1, *sides]:
            check.fail("noise", f"shape {[f'{batch} or 1', 1, *sides]}", list(noise.shape))
        check.tensor("noise", noise, noise.shape, dtypes, x.device)
        if not noise[:1].is_contiguous():
            check.fail("noise", "contiguous planes", f"strides {noise.stride()}")
        check.rank("noise_weight", noise_weight, 1, "[C] or [1]")
        size = (1,) if len(noise_weight) == 1 else (channels,)
        check.tensor("noise_weight", noise_weight, size, dtypes, x.device, "[C] or [1]")
        check.contiguous("noise_weight", noise_weight)
    if bias is not None:
        check.tensor("bias", bias, (channels,), dtypes, x.device, "[C]")
        check.contiguous("bias", bias)
    _number("slope", slope)
    _number("act_gain", act_gain)


def _number(name: str, value: float) -> None:
    check.number(name, value, "a finite number")
    if not math.isfinite(value):
        check.fail(name, "a finite number", value)


def _span(x: Tensor) -> int:
    """Elements from a sample's first to its last."""
    return 1 + sum((n - 1) * abs(step) for n, step in zip(x.shape[1:], x.stride()[1:], strict=True))


def _plain(x: Tensor, *others: Any) -> Tensor:
    """The PyTorch path."""
    return without_autocast(reference.upfirdn, x, *others)


def _fused(
    x: Tensor,
    filter: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0),
    gain: float = 1.0,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    act_gain: float = 1.0,
    post_scale: Tensor | None = None,
) -> Tensor:
    """The Triton path."""
    if x.dtype == torch.float64:
        check.fail(
            "x", "torch.float32, float16 or bfloat16 on the Triton path", f"{x.dtype}: use 'reference'"
        )
    from . import kernel

    return kernel.launch(
        x, filter, up, down, (padding[0], padding[1]), gain, scale, noise, noise_weight, bias, slope, act_gain,
        post_scale,
    )  # fmt: skip


@custom_op("upfirdn")
def _upfirdn(
    x: Tensor,
    filter: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    scale: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    bias: Tensor | None,
    slope: float,
    act_gain: float,
    post_scale: Tensor | None,
) -> Tensor:
    """`upfirdn` on the selected path. Every traced call, and every one on a GPU, ends here."""
    run = _fused if select(x.device.type) == "triton" else _plain
    return run(
        x, filter, up, down, padding, gain, scale, noise, noise_weight, bias, slope, act_gain, post_scale
    )


@_upfirdn.register_fake
def _(x: Tensor, filter: Tensor | None, up: int, down: int, padding: Sequence[int], *rest: Any) -> Tensor:
    shape = reference.output_shape(x, filter, up, down, (padding[0], padding[1]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


differentiate_through(_upfirdn, reference.upfirdn, wrt=(0, 1, 6, 7, 8, 9, 12))

OP = Op(
    name="upfirdn",
    outputs=("y",),
    function=upfirdn,
    out=None,
    reference=reference.upfirdn,
    fused=_fused,
    overload=torch.ops.fastgen.upfirdn.default,
    decomposition=reference.upfirdn,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    eager=eager.upfirdn,
    # A window of four rows, 8 channels a thread, and three vectors of the epilogue. Three programs of 4 warps fit a
    # multiprocessor: 384 threads with 7 loads of 16 bytes under way each, enough to hide memory's latency.
    # A small program of one warp reads its vectors, scale and bias, 4 or 8 bytes a thread: beside the 16 bytes of x
    # that each thread of an epilogue at 4x4 has, that looks like most of all.
    budget=Budget(registers=168, wide=0.3),
)
