"""The modulated convolution on a GPU: a library's convolution between two passes of `upfirdn`'s kernel.

Which of it is Triton: what PyTorch would do in many passes over the activations. Demodulation, noise, bias, LeakyReLU,
its gain and the next layer's style are one pass, behind an upsampling convolution the same that filters its result; the
style before the convolution is one, and none at all where the layer before has multiplied it in. The factors of
demodulation are a kernel of their own, one launch rather than three. The products, most of the work, are the
library's: with one weight for all samples they are an ordinary convolution, for which cuDNN has a kernel for every
shape and GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..adain.plan import power_of_2
from ..adain.reference import memory_format
from ..patch_conv.reference import without_autocast
from ..upfirdn import kernel as resampling
from .reference import convolved, padding_behind, weight_energy

OUTPUTS = 4  # of a program: 512 output channels are 128 programs at batch 1
MOST_INPUTS = 512  # input channels of a step


@triton.jit
def demodulation_kernel(
    style,  # [B, I], rows contiguous
    energy,  # [O, I], contiguous: sums of squares of weights over the taps
    factors,  # float32 [B, O]
    inputs,  # I
    outputs,  # O
    style_b,  # elements from a sample to the next
    eps,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    # Grid: (blocks of output channels, B).
    b = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    known = o < outputs
    total = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for first in range(0, inputs, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        s = tl.load(style + b * style_b + i, mask=i < inputs, other=0.0).to(tl.float32)
        mask = known[:, None] & (i < inputs)[None, :]
        w = tl.load(energy + o.to(tl.int64)[:, None] * inputs + i[None, :], mask=mask, other=0.0)
        total += w.to(tl.float32) * (s * s)[None, :]
    tl.store(factors + b * outputs + o, tl.rsqrt(tl.sum(total, 1) + eps), mask=known)


def demodulation(style: Tensor, energy: Tensor, eps: float) -> Tensor:
    """As the reference, float32."""
    (batch, inputs), outputs = style.shape, len(energy)
    factors = torch.empty(batch, outputs, dtype=torch.float32, device=style.device)
    with torch.cuda.device_of(style):
        demodulation_kernel[(triton.cdiv(outputs, OUTPUTS), batch)](
            style,
            energy,
            factors,
            inputs,
            outputs,
            style.stride(0),
            eps,
            BLOCK_O=OUTPUTS,
            BLOCK_I=min(MOST_INPUTS, power_of_2(inputs)),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return factors


def launch(
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
    """Launch the kernels and the library on arguments that `modulated_conv` has checked."""
    layout = memory_format(x)
    factors = None
    if demodulate:
        factors = demodulation(style, weight_energy(weight) if energy is None else energy, eps)
    v = x if scaled else resampling.launch(x, scale=style)
    v = without_autocast(convolved, v, weight, up)
    ends, gain = (0, 0), 1.0
    if filter is not None:
        ends, gain = padding_behind(weight.shape[2], len(filter)), float(up * up)
    return resampling.launch(
        v, filter, padding=ends, gain=gain, scale=factors, noise=noise, noise_weight=noise_weight, bias=bias,
        slope=slope, act_gain=act_gain, post_scale=post_scale, layout=layout,
    )  # fmt: skip
