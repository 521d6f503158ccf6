"""Group normalisation (Wu & He 2018, eq. 1-4) with what U-Nets put around it, in plain PyTorch.

    v = [x, skip] + add                                   over channels; add is one value per channel
    t = (v - mean_g) / sqrt(var_g + eps) * weight + bias   mean and variance of each sample's group of channels
    y = silu(t * (1 + scale) + shift)                      silu(z) = z / (1 + exp(-z))

16-bit inputs are computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOW_PRECISION = (torch.float16, torch.bfloat16)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> Tensor:
    """The formula above. Shapes and options are those of the public function."""
    memory_format = output_format(x, skip)
    v = x if skip is None else torch.cat((x, skip), 1)
    # On CPU, torch 2.13's kernel for channels-last takes the variance as E[x^2] - E[x]^2, which is lost in
    # rounding where the mean is large; on CUDA it makes this copy itself.
    v = working(v).contiguous()
    if add is not None:
        v = v + working(add)[:, :, None, None]
    # As one axis of pixels: one channel, or one pixel, may else still pass for channels-last.
    y = F.group_norm(v.flatten(2), num_groups, maybe(weight), maybe(bias), eps).reshape(v.shape)
    if scale is not None:
        y = y * (1.0 + working(scale))[:, :, None, None]
    if shift is not None:
        y = y + working(shift)[:, :, None, None]
    if act:
        y = F.silu(y)
    return y.to(x.dtype).contiguous(memory_format=memory_format)


def working(value: Tensor) -> Tensor:
    """`value` in the type that sums are kept in: float32 for 16-bit types."""
    return value.float() if value.dtype in LOW_PRECISION else value


def maybe(value: Tensor | None) -> Tensor | None:
    """:func:`working` of an optional tensor."""
    return None if value is None else working(value)


def layouts(x: Tensor) -> tuple[bool, bool]:
    """Whether x [B, C, H, W] is laid out as NCHW, and whether as channels-last; a slice of channels counts too.

    NCHW: each channel's pixels are contiguous. Channels-last: each pixel's channels are, and pixels lie evenly.
    One channel or one pixel can be both.
    """
    _, channels, height, width = x.shape
    _, across, down, along = x.stride()
    if width == 1:  # an axis of size 1 has no stride that matters
        along = down
    step = 1 if height == width == 1 else along
    rows_follow = height == 1 or width == 1 or down == width * along
    return rows_follow and step == 1, rows_follow and (channels == 1 or across == 1)


def output_format(x: Tensor, skip: Tensor | None) -> torch.memory_format:
    """The memory format of the result: NCHW where all inputs may be read so, else channels-last."""
    planes = _is_planes(x) and (skip is None or _is_planes(skip))
    return torch.contiguous_format if planes else torch.channels_last


def _is_planes(x: Tensor) -> bool:
    return x.is_contiguous() or layouts(x)[0]
