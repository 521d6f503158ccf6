"""PatchGAN's convolution in plain PyTorch (Isola et al. 2017, appendix 6.1.2).

Every layer of the patch discriminator is

    y = leaky_relu(conv4x4(x, stride, padding = 1) + bias),     leaky_relu(v) = max(v, 0) + slope * min(v, 0)

with batch norm folded into weight and bias beforehand; the last one has a single output channel and no
activation. The 70x70 discriminator has strides 2, 2, 2, 1, 1: each of its outputs sees 70x70 pixels, and their mean
is the score of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import output_format

PADDING = 1
Result = TypeVar("Result")


def patch_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 2,
    negative_slope: float | None = 0.2,
) -> Tensor:
    """Convolution, bias and LeakyReLU; arguments and result as `fastgen_kernels.patch_conv` describes."""
    y = F.conv2d(x, weight, bias, stride, PADDING)
    if negative_slope is not None:
        y = F.leaky_relu(y, negative_slope)
    return y.contiguous(memory_format=output_format(x, weight))


def without_autocast(function: Callable[..., Result], x: Tensor, *rest: Any) -> Result:
    """function(x, *rest) in the types of its arguments, as the kernels compute it, under autocast too."""
    kind = "cpu" if x.is_cpu else x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):
        return function(x, *rest)
    with torch.autocast(kind, enabled=False):
        return function(x, *rest)
