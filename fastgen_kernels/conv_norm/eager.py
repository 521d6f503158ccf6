"""The convolution and its norm as U-Nets are written: every step in x's type, which rounds 16-bit results each time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..patch_conv.eager import dense_weight
from .reference import given


def conv_norm(*positional: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """As the reference, in x's type: cuDNN's convolution and PyTorch's norm on CUDA."""
    a = given(*positional, **named)
    dtype = a["x"].dtype
    raw = convolution(a)
    if a["num_groups"] is None:
        return raw, raw.new_empty(0)
    weight, bias, scale, shift = (
        None if a[name] is None else a[name].to(dtype)
        for name in ("norm_weight", "norm_bias", "scale", "shift")
    )
    y = F.group_norm(_joined(raw, a["skip"]), a["num_groups"], weight, bias, a["eps"])
    if scale is not None:
        y = y * (1.0 + scale)[:, :, None, None]
    if shift is not None:
        y = y + shift[:, :, None, None]
    return raw, F.silu(y) if a["act"] else y


def convolution(a: dict[str, Any]) -> Tensor:
    """raw, of the arguments `given`."""
    x = _joined(a["x"], a["beside"])
    if a["upsample"]:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    before, after = a["padding"]
    if before != after:
        x, before = F.pad(x, (before, after, before, after)), 0
    bias = None if a["bias"] is None else a["bias"].to(x.dtype)
    v = F.conv2d(x, dense_weight(x, a["weight"]), bias, a["stride"], before)
    if a["shortcut"] is not None:
        other = _joined(a["shortcut"], a["shortcut_beside"])
        v = v + F.conv2d(other, dense_weight(other, a["shortcut_weight"]))
    if a["add"] is not None:
        v = v + a["add"].to(v.dtype)[:, :, None, None]
    if a["residual"] is not None:
        v = v + a["residual"]
    return v if a["output_scale"] == 1.0 else v / a["output_scale"]


def _joined(x: Tensor, beside: Tensor | None) -> Tensor:
    return x if beside is None else torch.cat((x, beside), 1)
