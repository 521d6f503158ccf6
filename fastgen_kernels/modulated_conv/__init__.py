"""StyleGAN2's modulated convolution with demodulation, noise, bias and LeakyReLU: a layer of its synthesis network.

The maths stands in `reference.py`; how it runs on a GPU, and why, in `kernel.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..adain import BESIDE
from ..adain.reference import memory_format
from ..op import Budget, Op, custom_op, differentiate_through, direct, select
from ..patch_conv.reference import without_autocast
from ..upfirdn import MAX_ELEMENTS, MAX_TAPS, check_epilogue
from . import cases, eager, reference
from .reference import weight_energy

__all__ = ["OP", "modulated_conv", "weight_energy"]


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    demodulate: bool = True,
    eps: float = 1e-8,
    energy: Tensor | None = None,
    scaled: bool = False,
    up: int = 1,
    filter: Tensor | None = None,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    act_gain: float = 1.0,
    post_scale: Tensor | None = None,
) -> Tensor:
    """A convolution whose weight is multiplied by each sample's style and brought to unit norm, and its epilogue.

        w'[b, o, i, k] = w[o, i, k] * style[b, i];   w'' = w' / sqrt(sum over i, k of w'^2 + eps)
        y[b] = LeakyReLU(conv(x[b], w''[b]) + noise * noise_weight + bias) * act_gain * post_scale

    (Karras et al. 2020, eq. 1 and 3, figure 2 d). The weights w'' are never made: styles are multiplied to the
    activations and the norms divide the result, which is the same.

    Args:
        x: [B, I, H, W] in float32, float16 or bfloat16 (float64 on the PyTorch path); channels-last is fastest.
        weight: [O, I, k, k] in x's type, k odd, the learning rate's factor multiplied in. With up 2 a
            channels-last [I, O, k, k], transposed, is read as it lies.
        style: [B, I] in x's type or float32, rows contiguous.
        demodulate: whether w' is divided by its norm (not for a layer that makes colours).
        eps: more than 0.
        energy: [O, I] in x's type or float32, contiguous: `weight_energy(weight)`, for a weight that does not change;
            computed in every call if None.
        scaled: x has been multiplied by style, by `post_scale` of the layer before.
        up: 1, the size is kept; 2, it is doubled: a transposed convolution of stride 2, and the filter.
        filter: [T] in x's type or float32, contiguous, goes with up 2: see :func:`fastgen_kernels.upfirdn`. A sum of 1
            keeps the brightness.
        noise, noise_weight, bias, slope, act_gain, post_scale: as for :func:`fastgen_kernels.upfirdn`, for O
            channels of the result's size.

    Returns:
        [B, O, H * up, W * up] in x's type, contiguous, or channels-last where x's pixels do not follow each other.

    In 16 bits the scaled activations and the convolution's result are rounded to them on the way, and must not exceed
    them; all else is computed in float32. float32 products are rounded to TF32 where
    `torch.backends.cudnn.conv.fp32_precision` is "tf32". Gradients flow to every tensor.

    Raises:
        OperandError: naming the argument, what was expected and what was received.

    >>> x, weight, style = torch.randn(2, 8, 4, 4), torch.randn(6, 8, 3, 3), torch.rand(2, 8) + 0.5
    >>> y = modulated_conv(x, weight, style, slope=0.2, act_gain=2**0.5)
    >>> torch.allclose(y, modulated_conv(x, weight, 3 * style, slope=0.2, act_gain=2**0.5), atol=1e-5)
    True
    """
    check.rank("x", x, 4, "[B, I, H, W]")
    if x.dtype not in BESIDE:
        check.dtype("x", x, tuple(BESIDE))
    batch, inputs = x.shape[:2]
    dtypes = BESIDE[x.dtype]
    check.rank("weight", weight, 4, "[O, I, k, k]")
    outputs, size = weight.shape[0], weight.shape[2]
    if size % 2 == 0:
        check.fail("weight", "a kernel [O, I, k, k] of odd k", list(weight.shape))
    check.tensor("weight", weight, (outputs, inputs, size, size), (x.dtype,), x.device, "[O, I, k, k]")
    check.tensor("style", style, (batch, inputs), dtypes, x.device, "[B, I]")
    if inputs > 1 and style.stride(1) != 1:
        check.fail("style", "a tensor whose rows are contiguous", f"strides {style.stride()}")
    check.number("eps", eps, "a number, more than 0")
    if not 0.0 < eps < math.inf:
        check.fail("eps", "a number, more than 0", eps)
    if energy is not None:
        if not demodulate:
            check.fail("energy", "None without demodulation", "a tensor")
        check.tensor("energy", energy, (outputs, inputs), dtypes, x.device, "[O, I]")
        check.contiguous("energy", energy)
    if type(up) is not int or up not in (1, 2):
        check.fail("up", "1 or 2", repr(up))
    if (filter is None) != (up == 1):
        check.fail(
            "filter", "a filter with up 2, and None with up 1", "None" if filter is None else "a tensor"
        )
    if filter is not None:
        check.rank("filter", filter, 1, "[T]")
        check.tensor("filter", filter, filter.shape, dtypes, x.device, "[T]")
        check.contiguous("filter", filter)
        if len(filter) > MAX_TAPS:
            check.fail("filter", f"at most {MAX_TAPS} taps", len(filter))
    shape = reference.output_shape(x, weight, up)
    if max(inputs, outputs) * (shape[2] + size + MAX_TAPS) * (shape[3] + size + MAX_TAPS) >= MAX_ELEMENTS:
        check.fail("x", "fewer than 2^31 elements a sample, before and behind", list(x.shape))
    check_epilogue(x, shape, None, noise, noise_weight, bias, slope, act_gain, post_scale)
    run = _plain if direct(x.device.type) else torch.ops.fastgen.modulated_conv
    return run(
        x, weight, style, demodulate, float(eps), energy, scaled, up, filter, noise, noise_weight, bias,
        float(slope), float(act_gain), post_scale,
    )  # fmt: skip


def _plain(x: Tensor, *others: Any) -> Tensor:
    """The PyTorch path."""
    return without_autocast(reference.modulated_conv, x, *others)


def _fused(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool = True,
    eps: float = 1e-8,
    energy: Tensor | None = None,
    scaled: bool = False,
    up: int = 1,
    filter: Tensor | None = None,
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
        x, weight, style, demodulate, eps, energy, scaled, up, filter, noise, noise_weight, bias, slope,
        act_gain, post_scale,
    )  # fmt: skip


@custom_op("modulated_conv")
def _modulated_conv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool,
    eps: float,
    energy: Tensor | None,
    scaled: bool,
    up: int,
    filter: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    bias: Tensor | None,
    slope: float,
    act_gain: float,
    post_scale: Tensor | None,
) -> Tensor:
    """`modulated_conv` on the selected path. Every traced call, and every one on a GPU, ends here."""
    run = _fused if select(x.device.type) == "triton" else _plain
    return run(
        x, weight, style, demodulate, eps, energy, scaled, up, filter, noise, noise_weight, bias, slope,
        act_gain, post_scale,
    )  # fmt: skip


@_modulated_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool,
    eps: float,
    energy: Tensor | None,
    scaled: bool,
    up: int,
    *rest: Any,
) -> Tensor:
    shape = reference.output_shape(x, weight, up)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


differentiate_through(_modulated_conv, reference.modulated_conv, wrt=(0, 1, 2, 5, 8, 9, 10, 11, 14))

OP = Op(
    name="modulated_conv",
    outputs=("y",),
    function=modulated_conv,
    out=None,
    reference=reference.modulated_conv,
    fused=_fused,
    overload=torch.ops.fastgen.modulated_conv.default,
    decomposition=reference.modulated_conv,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    eager=eager.modulated_conv,
    # As upfirdn's, whose kernel its own passes are.
    budget=Budget(registers=168, wide=0.3),
)
