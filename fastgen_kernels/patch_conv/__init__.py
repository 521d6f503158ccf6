"""PatchGAN's convolution: 4x4, padding 1, bias and LeakyReLU in one pass: every layer of the patch discriminator.

`pack_weight` brings a weight into the order in which the kernels read it, once. The mean over an image's patches is
an operation of its own, `patch_score`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import check
from ..op import Budget, Op, custom_op, differentiate_through, direct, select
from . import cases, cpu, eager, reference
from .layout import MAX_COUNT, TAPS, output_format, output_shape, pack_weight, padded
from .reference import without_autocast

__all__ = ["OP", "check_arguments", "check_kernel", "pack_weight", "patch_conv"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def patch_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 2,
    negative_slope: float | None = 0.2,
) -> Tensor:
    """One layer of the patch discriminator: 4x4 convolution with padding 1, bias, LeakyReLU.

    y = leaky_relu(conv(x, weight) + bias), leaky_relu(v) = v where v >= 0, else negative_slope * v
    (Isola et al. 2017, appendix 6.1.2, with batch norm folded into weight and bias beforehand).

    Args:
        x: [B, Cin, H, W] float32, float16 or bfloat16 (float64 on the PyTorch path), H and W at least 2, any strides.
            The kernel reads a channels-last x as it lies where its pixels start at multiples of 8 elements (Cin a
            multiple of 8, or fewer channels of such pixels); it copies another one first.
        weight: [Cout, Cin, 4, 4] typed as x, any strides; from :func:`pack_weight` it is not copied.
        bias: [Cout] typed as x, contiguous, or None.
        stride: 1 or 2.
        negative_slope: at least 0; None for no activation.

    Returns:
        [B, Cout, (H - 2) // stride + 1, (W - 2) // stride + 1] typed as x, dense: channels-last where x or weight is,
        as PyTorch's convolutions choose it, otherwise contiguous.

    float32 products are rounded to TF32 where `torch.backends.cudnn.conv.fp32_precision` is "tf32" (PyTorch's default,
    `torch.backends.cudnn.allow_tf32`). Gradients flow to x, weight and bias.

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    check_arguments(x, weight, bias, stride)
    if negative_slope is not None and (
        (
            type(negative_slope) is not float
            and (isinstance(negative_slope, bool) or not isinstance(negative_slope, (float, int)))
        )
        or not 0.0 <= negative_slope < math.inf
    ):
        check.fail("negative_slope", "None or a finite number, at least 0", negative_slope)
    if direct("cpu" if x.is_cpu else x.device.type):
        return _reference(x, weight, bias, stride, negative_slope)
    return torch.ops.fastgen.patch_conv(x, weight, bias, stride, negative_slope)


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> None:
    """OperandError unless the arguments are as :func:`patch_conv` describes them.

    All are looked at in one expression, and in words where it fails: a small layer takes 35 us on CPU.
    """
    if isinstance(x, Tensor) and isinstance(weight, Tensor) and x.dim() == weight.dim() == 4:
        batch, inputs, height, width = x.shape
        channels, depth, rows, columns = weight.shape
        dtype, device = x.dtype, x.device
        if (
            type(stride) is int
            and (stride == 1 or stride == 2)
            and height >= 2
            and width >= 2
            and batch
            and inputs == depth
            and inputs
            and channels
            and rows == columns == 4
            and weight.dtype == dtype
            and weight.device == device
            and dtype in DTYPES
            and (
                bias is None
                or (
                    isinstance(bias, Tensor)
                    and bias.shape == (channels,)
                    and bias.dtype == dtype
                    and bias.device == device
                    and bias.is_contiguous()
                )
            )
        ):
            return
    _complain(x, weight, bias, stride)


def _complain(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> None:
    """What is wrong with them, in words."""
    check.rank("x", x, 4, "[B, Cin, H, W]")
    check.dtype("x", x, DTYPES)
    if min(x.shape[2:]) < 2:
        check.fail("x", "images [B, Cin, H, W] of at least 2x2 pixels", list(x.shape))
    channels = (len(weight) if isinstance(weight, Tensor) and weight.dim() else 0) or 1
    check.tensor("weight", weight, (channels, x.shape[1], 4, 4), (x.dtype,), x.device, "[Cout, Cin, 4, 4]")
    if bias is not None:
        check.tensor("bias", bias, (channels,), (x.dtype,), x.device, "[Cout]")
        check.contiguous("bias", bias)
    check.fail("stride", "1 or 2", repr(stride))


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, negative_slope: float | None
) -> Tensor:
    """The PyTorch path."""
    function = cpu.patch_conv if x.is_cpu else reference.patch_conv
    return without_autocast(function, x, weight, bias, stride, negative_slope)


def _fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 2,
    negative_slope: float | None = 0.2,
) -> Tensor:
    """The Triton path."""
    check_kernel(x, weight)
    from ..patch_score import kernel as one_channel
    from . import kernel

    convolve = one_channel.convolve if weight.shape[0] == 1 else kernel.convolve
    return convolve(x, weight, bias, stride, negative_slope)


def check_kernel(x: Tensor, weight: Tensor) -> None:
    """OperandError where checked arguments are more than the kernels hold, if not the PyTorch path."""
    if x.dtype == torch.float64:
        check.fail("x", "float32, float16 or bfloat16 in the kernel (or use('reference'))", x.dtype)
    batch, inputs, height, width = x.shape
    if max(batch, padded(inputs)) * height * width >= MAX_COUNT:
        check.fail("x", "fewer than 2^30 pixels, and elements an image (Cin rounded up to 8s)", list(x.shape))
    if len(weight) * padded(inputs) * TAPS >= MAX_COUNT:
        check.fail("weight", "fewer than 2^30 elements (Cin rounded up to 8s)", list(weight.shape))


@custom_op("patch_conv")
def _patch_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, negative_slope: float | None
) -> Tensor:
    run = _fused if select(x.device.type) == "triton" else _reference
    return run(x, weight, bias, stride, negative_slope)


@_patch_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, negative_slope: float | None) -> Tensor:
    shape = output_shape(x, weight, stride)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x, weight))


differentiate_through(_patch_conv, _reference, wrt=(0, 1, 2))


OP = Op(
    name="patch_conv",
    outputs=("y",),
    function=patch_conv,
    out=None,
    reference=reference.patch_conv,
    fused=_fused,
    overload=torch.ops.fastgen.patch_conv.default,
    decomposition=reference.patch_conv,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    eager=eager.patch_conv,
    # Bound by tensor cores. The largest tile has a multiprocessor to itself: 128 sums and, in float32, 202 registers a
    # thread. Of every other tile two blocks of 8 warps share 65,536 registers, 128 a thread: a slow test of the kernel
    # holds them to it. Tensors move in boxes and accesses of 16 bytes; the bias comes once a program in narrower ones,
    # which count most in a first layer's short loop.
    budget=Budget(registers=208, wide=0.7),
)
