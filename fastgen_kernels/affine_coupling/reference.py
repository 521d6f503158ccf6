"""The affine coupling in plain PyTorch (NICE, RealNVP, Glow).

A coupling changes a part of x by what a network says, which saw only the other part:

    forward   y = x * a + t           shift_first:   y = (x + t) * a
    inverse   y = (x - t) / a                        y = x / a - t
    log_det   sum of log a over the changed elements of a sample; of -log a for the inverse

(Dinh et al. 2017, eq. 4-8). The positive scale a comes from the network's raw s by a map that packages choose
differently:

    exp         a = exp(s)                                      RealNVP
    sigmoid     a = sigmoid(s + 2) + eps                        Glow (eps 0), nflows (1e-3)
    tanh        log a = bound * rescale * tanh(s)               RealNVP's code, rescale learned for each channel
    soft_clip   log a = s / (1 + |s / log(slope)|)              zuko
    additive    a = 1                                           NICE
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor


def split(network: Tensor, parameters: str) -> tuple[Tensor, Tensor]:
    """Views of raw scale s and shift t within the network's output."""
    if parameters.endswith("_interleaved"):
        first, second = network[:, 0::2], network[:, 1::2]
    else:
        first, second = network.chunk(2, dim=1)
    return (first, second) if parameters.startswith("scale") else (second, first)


def changed(x: Tensor, mask: Tensor | None, parity: int | None) -> Tensor | None:
    """Boolean, broadcasts with x: the elements that the coupling changes. None: all."""
    if parity is None:
        return mask
    index = torch.arange(x.shape[-1], device=x.device)
    if x.dim() == 4:
        index = index + torch.arange(x.shape[2], device=x.device)[:, None]
    return index % 2 == parity


def argument(s: Tensor, scale: str, bound: float, slope: float, rescale: Tensor | None) -> Tensor:
    """What the sigmoid, or else the exponential, is taken of."""
    if scale == "sigmoid":
        return s + 2.0
    if scale == "tanh":
        amplitude = bound if rescale is None else bound * rescale.view(-1, *[1] * (s.dim() - 2))
        return amplitude * torch.tanh(s)
    if scale == "soft_clip":
        return s / (1.0 + s.abs() / abs(math.log(slope)))
    return s


def scale_of(u: Tensor, scale: str, eps: float) -> Tensor:
    """Scale a of an argument u."""
    if scale != "sigmoid":
        return torch.exp(u)
    a = torch.sigmoid(u)
    return a + eps if eps else a


def log_scale_of(u: Tensor, a: Tensor, scale: str, eps: float) -> Tensor:
    """log a."""
    if scale != "sigmoid":
        return u
    return torch.log(a) if eps else functional.logsigmoid(u)


def affine_coupling(
    x: Tensor,
    network: Tensor,
    scale: str = "exp",
    eps: float = 0.0,
    bound: float = 1.0,
    slope: float = 1e-3,
    rescale: Tensor | None = None,
    mask: Tensor | None = None,
    parity: int | None = None,
    parameters: str = "scale_shift",
    inverse: bool = False,
    shift_first: bool = False,
    log_det: bool = True,
) -> tuple[Tensor, Tensor]:
    """Changed x and log_det; arguments and results as `fastgen_kernels.affine_coupling` describes."""
    active = changed(x, mask, parity)
    if scale == "additive":
        t = network.to(x.dtype)
        y = x - t if inverse else x + t
        total = x.new_zeros(x.shape[0] if log_det else 0)
        return (y if active is None else torch.where(active, y, x)), total

    s, t = split(network.to(x.dtype), parameters)
    if active is not None:
        s = torch.where(active, s, 0.0)  # an exponential that overflows there would spoil the gradient
    u = argument(s, scale, bound, slope, rescale)
    a = scale_of(u, scale, eps)
    if inverse:
        y = x / a - t if shift_first else (x - t) / a
    elif shift_first:
        y = (x + t) * a
    else:
        y = x * a + t
    if active is not None:
        y = torch.where(active, y, x)
    if not log_det:
        return y, x.new_empty(0)
    log_a = log_scale_of(u, a, scale, eps)
    if active is not None and scale == "sigmoid":  # elsewhere the log of 0's scale is 0
        log_a = torch.where(active, log_a, 0.0)
    total = log_a.sum(dim=(1, 2, 3) if x.dim() == 4 else 1)
    return y, -total if inverse else total
