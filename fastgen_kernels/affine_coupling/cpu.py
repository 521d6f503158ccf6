"""The affine coupling on CPU, where no gradient is asked for: the reference with fewer passes and fewer new tensors.

No `out=`, and nothing in place on a tensor that may have fewer elements: torch.func's transforms work through it.
It is also the formula to measure the kernel against, for it launches least on any device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import split


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
    active = mask if parity is None else _board(x, parity)
    if scale == "additive":
        y = x - network if inverse else x + network
        total = x.new_zeros(x.shape[0] if log_det else 0)
        return (y if active is None else torch.where(active, y, x)), total

    s, t = split(network, parameters)
    a, log_a = _scale(s.to(x.dtype), scale, eps, bound, slope, rescale, log_det)
    if inverse:
        y = (x / a).sub_(t) if shift_first else (x - t).div_(a)
    elif shift_first:
        y = (x + t).mul_(a)
    else:
        y = torch.addcmul(t, x, a)  # in t's order of axes
        if x.stride() != t.stride() and not (x.is_contiguous() and network.is_contiguous()):
            y = torch.empty_like(x).copy_(y)
    if active is not None:
        y = torch.where(active, y, x)
    if log_a is None:
        return y, x.new_empty(0)
    total = _total(log_a, active)
    return y, total.neg_() if inverse else total


def affine_coupling_(
    x: Tensor,
    network: Tensor,
    log_det: Tensor | None,
    scale: str,
    eps: float,
    bound: float,
    slope: float,
    rescale: Tensor | None,
    mask: Tensor | None,
    parity: int | None,
    parameters: str,
    inverse: bool,
    shift_first: bool,
) -> None:
    """Change x where it lies, with the same bits, and add to log_det."""
    if mask is not None or parity is not None:
        options = (scale, eps, bound, slope, rescale, mask, parity, parameters, inverse, shift_first)
        y, total = affine_coupling(x, network, *options, log_det is not None)
        x.copy_(y)
        if log_det is not None:
            log_det.add_(total)
        return
    if scale == "additive":
        x.sub_(network) if inverse else x.add_(network)
        return
    s, t = split(network, parameters)
    a, log_a = _scale(s.to(x.dtype), scale, eps, bound, slope, rescale, log_det is not None)
    if inverse:
        x.div_(a).sub_(t) if shift_first else x.sub_(t).div_(a)
    elif shift_first:
        x.add_(t).mul_(a)
    else:
        torch.addcmul(t, x, a, out=x)
    if log_det is not None and log_a is not None:
        log_det.add_(_total(log_a, None), alpha=-1 if inverse else 1)


def _scale(
    s: Tensor, scale: str, eps: float, bound: float, slope: float, rescale: Tensor | None, logarithm: bool
) -> tuple[Tensor, Tensor | None]:
    """(a, log a) of raw scales s; a is a new tensor. Without `logarithm`: (a, None)."""
    if scale == "sigmoid":
        u = s + 2.0
        if eps:
            a = u.sigmoid_().add_(eps)
            return a, (a.log() if logarithm else None)
        # log(sigmoid(u)) would be quicker, but has no digits left where the sigmoid is near 1.
        log_a = F.logsigmoid(u) if logarithm else None
        return u.sigmoid_(), log_a
    if scale == "tanh":
        log_a = s.tanh()
        if rescale is not None:
            log_a = log_a * (bound * rescale.view(-1, *[1] * (s.dim() - 2)))
        elif bound != 1.0:
            log_a.mul_(bound)
    elif scale == "soft_clip":
        log_a = s / s.abs().div_(abs(math.log(slope))).add_(1.0)
    else:
        log_a = s
    return log_a.exp(), (log_a if logarithm else None)


def _total(log_a: Tensor, active: Tensor | None) -> Tensor:
    if active is not None:
        log_a = torch.where(active, log_a, 0.0)
    return log_a.sum((1, 2, 3) if log_a.dim() == 4 else 1)


def _board(x: Tensor, parity: int) -> Tensor:
    """`reference.changed` of a parity, in a third of the time: fields of a board of odd width alternate in memory."""
    height, width = x.shape[-2:] if x.dim() == 4 else (1, x.shape[1])
    odd = width | 1
    fields = torch.zeros(height * odd, dtype=torch.bool, device=x.device)
    fields[parity::2].fill_(True)
    return fields.as_strided((height, width), (odd, 1))
