"""The patch score's cases, error bounds and costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..op import Arguments, rounding_bound
from ..patch_conv.cases import accumulated, double, magnitude, make_case, total_bytes
from ..patch_conv.cases import flops as convolution_flops
from ..patch_conv.layout import output_shape
from .reference import patch_score

CASES = (
    make_case("tiny", "one patch of 2x2 pixels", (1, 1, 2, 2), 1, layout="first"),
    make_case("odd", "patches of which none is whole", (2, 16, 3, 5), 1),
    make_case("deep", "several steps of channels", (2, 136, 4, 4), 1),
    make_case("many", "more patches than a step adds up", (1, 8, 41, 37), 1),
    make_case("batch", "more pixels than a program takes, in samples that share programs", (3, 32, 7, 9), 1),
    make_case("stride2", "stride 2", (2, 24, 6, 8), 1, stride=2),
    make_case("picture", "a contiguous image of 3 channels", (2, 3, 6, 6), 1, layout="first"),
    make_case("padded", "3 channels of 8, with NaN between them", (1, 3, 4, 6), 1, layout="padded"),
    make_case("channels", "half of a tensor's channels", (2, 16, 4, 6), 1, layout="channels"),
    make_case("rows", "a window of a batch", (2, 16, 4, 6), 1, layout="rows"),
    make_case("plain", "weight not packed, no bias", (2, 12, 5, 5), 1, packed=False, bias=False),
    make_case("score1", "latency: one pair of 256x256", (1, 512, 31, 31), 1, production=True),
    make_case("score64", "throughput", (64, 512, 31, 31), 1, production=True),
    make_case("score256", "bandwidth: 500 MB in float32, 250 MB in 16 bits", (256, 512, 31, 31), 1, production=True),
)  # fmt: skip


def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> tuple[Tensor, ...]:
    """The score in float64 from the arguments as they were rounded."""
    return (patch_score(x.double(), weight.double(), double(bias), stride),)


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor, ...]:
    """Bound of the score: the mean of the patches' bounds, none of which is rounded to 16 bits."""
    x = named["x"]
    size = magnitude(x, named["weight"], named["bias"], named.get("stride", 1)).mean((1, 2, 3))
    return (rounding_bound(outputs[0], size, torch.promote_types(x.dtype, torch.float32), accumulated(x)),)


def bytes_moved(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> int:
    """Least traffic: every input read once, a float32 a sample written."""
    return total_bytes(x, weight, bias) + len(x) * max(4, x.element_size())


def flops(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> int:
    """Those of the convolution, and an addition a patch for the mean."""
    return convolution_flops(x, weight, None, stride, None) + math.prod(output_shape(x, weight, stride))
