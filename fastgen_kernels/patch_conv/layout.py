"""How activations and weights lie in memory.

The kernels read channels 8 at a time: a pixel's channels lie together, pixels start at multiples of 8 elements.
A weight [Cout, Cin, 4, 4] in this order, its channels padded with zeros to a multiple of 8, is a matrix
[Cout, 16 * channels] whose rows run as a patch's pixels do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 8  # channels: 16 bytes of a 16-bit type, and 8 * 4 * 4 = 128 products for an image's few channels
TAPS = 16
# The kernels count elements and pixels in int32, and reach three rows beyond a patch's first pixel.
MAX_COUNT = 2**30


def padded(channels: int) -> int:
    """The least multiple of GROUP that holds `channels`."""
    return -(-channels // GROUP) * GROUP


def channels_last(tensor: Tensor) -> bool:
    """Whether a pixel's channels lie together. Unambiguous for 2x2 pixels and more; true of packed weights."""
    return tensor.stride(1) == 1


def output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Memory format of the output, as PyTorch's convolutions choose it."""
    last = channels_last(x) or channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format


def output_shape(x: Tensor, weight: Tensor, stride: int) -> tuple[int, int, int, int]:
    """[B, Cout, OH, OW] of a 4x4 convolution with padding 1."""
    batch, _, height, width = x.shape
    return batch, weight.shape[0], (height - 2) // stride + 1, (width - 2) // stride + 1


def pack_weight(weight: Tensor) -> Tensor:
    """`weight` in the order in which the kernels read it, to be made once and kept by the caller.

    Args:
        weight: [Cout, Cin, kh, kw], any strides.

    Returns:
        [Cout, Cin, kh, kw] with the same values, channels-last, a pixel's channels followed by zeros up to a
        multiple of 8: a weight like any other, to F.conv2d too. A packed weight is returned as it is.
    """
    if is_packed(weight):
        return weight
    channels = weight.shape[1]
    # Through [Cout, 4, 4, C]: `contiguous(memory_format=channels_last)` leaves some strides of size-1 axes alone.
    rows = weight.permute(0, 2, 3, 1)
    if channels % GROUP:
        rows = F.pad(rows, (0, padded(channels) - channels))
    # A copy also of what lies in order, because then it is not aligned; none of what was padded just now.
    rows = rows.contiguous() if channels % GROUP else rows.clone(memory_format=torch.contiguous_format)
    return rows.permute(0, 3, 1, 2)[:, :channels]


def is_packed(weight: Tensor) -> bool:
    """Whether `weight` has the strides of :func:`pack_weight`. What lies in the padding is not looked at."""
    outputs, channels, rows, columns = weight.shape
    width = padded(channels)
    ordered = weight.stride()[1:] == (1, columns * width, width)
    taps = rows * columns
    return ordered and (outputs == 1 or weight.stride(0) == taps * width) and weight.data_ptr() % 16 == 0


def is_ready(x: Tensor) -> bool:
    """Whether the kernels can read the pixels of x [B, C, H, W] as they lie: aligned, 8 channels at a time.

    And a sample, from its first element to its last, within what int32 counts: a few channels of a huge one are not.
    """
    batch, channels, height, width = x.shape
    strides = (x.stride(0) if batch > 1 else 0, x.stride(2), x.stride(3))
    return (
        channels_last(x)
        and (height - 1) * x.stride(2) + (width - 1) * x.stride(3) + padded(channels) < MAX_COUNT
        and x.stride(3) >= padded(channels)
        and all(stride % GROUP == 0 for stride in strides)
        and x.data_ptr() % 16 == 0
    )


def group_strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of samples, rows and columns of a ready x in groups of 8 elements."""
    return x.stride(0) // GROUP, x.stride(2) // GROUP, x.stride(3) // GROUP


def input_precision(dtype: torch.dtype) -> str:
    """How the kernels round the factors of products: "tf32" where PyTorch's own convolutions may, else "ieee"."""
    tf32 = dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if tf32 else "ieee"
