"""A U-Net's convolution with what follows it, up to the next convolution's input, in plain PyTorch.

    raw = (conv(up([x, beside])) + conv1x1([shortcut, shortcut_beside]) + bias + add + residual) / output_scale
    normed = act(norm([raw, skip]) * (1 + scale) + shift)

Two of these are a residual block (Ho et al. 2020, appendix B). [a, b] stands one behind the other, by channels; up
doubles the resolution by nearest neighbour. `norm` is that of Wu & He 2018, of the raw map as it was rounded and
stored. 16-bit inputs are computed in float32 and rounded once to raw, and once more to normed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..group_norm.reference import group_norm, maybe, working


def conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | Sequence[int] | None = None,
    upsample: bool = False,
    beside: Tensor | None = None,
    shortcut: Tensor | None = None,
    shortcut_weight: Tensor | None = None,
    shortcut_beside: Tensor | None = None,
    add: Tensor | None = None,
    residual: Tensor | None = None,
    output_scale: float = 1.0,
    num_groups: int | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    skip: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> tuple[Tensor, Tensor]:
    """The formulas above. Shapes and options are those of the public function."""
    v = _joined(x, beside)
    if upsample:
        v = F.interpolate(v, scale_factor=2.0, mode="nearest")
    before, after = sides(padding, weight.shape[2])
    if before != after:
        v, before = F.pad(v, (before, after, before, after)), 0
    v = F.conv2d(v, working(weight), maybe(bias), stride, before)
    if shortcut is not None and shortcut_weight is not None:
        v = v + F.conv2d(_joined(shortcut, shortcut_beside), working(shortcut_weight))
    if add is not None:
        v = v + working(add)[:, :, None, None]
    if residual is not None:
        v = v + working(residual)
    if output_scale != 1.0:
        v = v / output_scale
    raw = v.to(x.dtype).contiguous(memory_format=torch.channels_last)
    if num_groups is None:
        return raw, x.new_empty(0)
    normed = group_norm(raw, num_groups, norm_weight, norm_bias, eps, skip, None, scale, shift, act)
    return raw, normed.contiguous(memory_format=torch.channels_last)


def _joined(x: Tensor, beside: Tensor | None) -> Tensor:
    return working(x if beside is None else torch.cat((x, beside), 1))


def sides(padding: int | Sequence[int] | None, size: int) -> tuple[int, int]:
    """Pixels of padding before and behind, of a kernel of `size`."""
    if padding is None:
        return size // 2, size // 2
    before, after = (padding, padding) if isinstance(padding, int) else padding
    return before, after


_SIGNATURE = inspect.signature(conv_norm)


def given(*positional: Any, **named: Any) -> dict[str, Any]:
    """All arguments of :func:`conv_norm` by name, those that are not given with their defaults."""
    bound = _SIGNATURE.bind(*positional, **named)
    bound.apply_defaults()
    arguments = bound.arguments
    arguments["padding"] = sides(arguments["padding"], arguments["weight"].shape[2])
    return dict(arguments)
