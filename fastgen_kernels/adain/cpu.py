"""Adaptive instance normalisation on CPU, where no gradient is asked for: the reference with fewer passes.

Every new tensor costs as much there as the arithmetic, so deviations are scaled in place, PyTorch's own norms, which
hand their statistics out, take over where they are exact, and half precision is widened by the piece. Not its group
norm of channels-last tensors, which takes the variance as E[x^2] - E[x]^2, and not group norm in half precision,
which would round twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import deviations, memory_format, per_plane, spread, working_dtype

# Elements up to which two copies between layouts cost less than the operations that they save.
SMALL = 8192
# Elements widened at once: larger float32 copies leave the cache, and malloc returns them to the system.
WHOLE = 1 << 18


def adain(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    style: Tensor | None,
    alpha: float,
    eps: float,
    correction: int,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    slope_before: float,
    slope_after: float,
) -> Tensor:
    """Adaptive instance normalisation; arguments and result as `fastgen_kernels.adain` describes."""
    dtype = working_dtype(x)
    gain = None if scale is None else per_plane(scale, dtype)
    offset = None if shift is None else per_plane(shift, dtype)
    if style is not None:
        offset, gain = _statistics(style, dtype, eps, correction)
    untouched = bias is None and noise is None and slope_before == 1.0
    # Others would round again.
    if (
        x.dtype != dtype
        and untouched
        and slope_after in (0.0, 1.0)
        and _exact(x, correction)
        and alpha == 1.0
    ):
        y = _batch_norm(x.contiguous(), gain, offset, eps)
        y = y if slope_after == 1.0 else y.relu_()
        return y if x.is_contiguous() else y.contiguous(memory_format=memory_format(x))
    rows = [gain, offset, *(None if t is None else per_plane(t, dtype) for t in (bias, noise_weight))]
    options = (alpha, eps, correction, slope_before, slope_after)
    if x.dtype == dtype or x.numel() <= WHOLE:
        y = _planes(x, noise, rows, *options)
        y = y if x.dtype == dtype else y.to(x.dtype)
        return y if x.is_contiguous() else y.contiguous(memory_format=memory_format(x))
    y = torch.empty(x.shape, dtype=x.dtype, memory_format=memory_format(x), device=x.device)
    for samples, channels in _pieces(x):
        parts = [None if t is None else (t[samples] if len(t) > 1 else t)[:, channels] for t in rows]
        z = noise if noise is None or len(noise) == 1 else noise[samples]
        y[samples, channels] = _planes(x[samples, channels], z, parts, *options)
    return y


def _pieces(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Samples and channels of pieces of about WHOLE elements, contiguous where x is."""
    batch, channels, height, width = x.shape
    samples = max(WHOLE // (channels * height * width), 1)
    # A channels-last sample stays whole: its channels lie side by side.
    step = max(WHOLE // (height * width), 1) if samples == 1 and x.is_contiguous() else channels
    for b in range(0, batch, samples):
        for c in range(0, channels, step):
            yield slice(b, b + samples), slice(c, c + step)


def _exact(x: Tensor, correction: int) -> bool:
    """Whether PyTorch's norms are the operation's, and cost no more than its own passes: x in planes, or small."""
    return not correction and x.shape[2] * x.shape[3] > 1 and (x.is_contiguous() or x.numel() <= SMALL)


def _group_norm(v: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """v's planes normalised; their means and 1 / sqrt(var + eps), both [B, C, 1, 1]."""
    batch, channels, height, width = v.shape
    y, mean, inverse = torch.native_group_norm(
        v.contiguous(), None, None, batch, channels, height * width, channels, eps
    )
    return y, mean.view(batch, channels, 1, 1), inverse.view(batch, channels, 1, 1)


def _statistics(style: Tensor, dtype: torch.dtype, eps: float, correction: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations [B or 1, C, 1, 1] of the style's planes."""
    if style.dtype != dtype and style.numel() > WHOLE:
        mean = torch.empty((*style.shape[:2], 1, 1), dtype=dtype, device=style.device)
        deviation = torch.empty_like(mean)
        for piece in _pieces(style):
            mean[piece], deviation[piece] = _statistics(style[piece].to(dtype), dtype, eps, correction)
        return mean, deviation
    style = style if style.dtype == dtype else style.to(dtype)
    if _exact(style, correction):
        _, mean, inverse = _group_norm(style, eps)
        return mean, inverse.reciprocal_()
    _, mean, deviation = deviations(style, eps, correction)
    return mean, deviation


def _planes(
    x: Tensor,
    noise: Tensor | None,
    rows: list[Tensor | None],
    alpha: float,
    eps: float,
    correction: int,
    slope_before: float,
    slope_after: float,
) -> Tensor:
    """The operation, before rounding; rows: gain, offset, bias and noise_weight [B or 1, C, 1, 1] in that type."""
    gain, offset, bias, noise_weight = rows
    dtype = working_dtype(x)
    untouched = bias is None and noise is None and slope_before == 1.0
    v = x if untouched else _content(x, dtype, bias, noise, noise_weight, slope_before)
    v = v if v.dtype == dtype else v.to(dtype)
    if _exact(x, correction):
        y, mean, inverse = _group_norm(v, eps)
        if alpha != 1.0:
            # alpha * (gain * y + offset) + (1 - alpha) * (y / inverse + mean)
            kept = (1.0 - alpha) / inverse
            gain = kept + alpha if gain is None else kept.add_(gain, alpha=alpha)
    else:
        mean = v.mean((2, 3), keepdim=True)
        y = v - mean if v is x else v.sub_(mean)
        deviation = spread(y, eps, correction)
        gain = 1.0 / deviation if gain is None else gain / deviation
        if alpha != 1.0:
            gain = alpha * gain + (1.0 - alpha)
    if alpha != 1.0:
        kept = mean * (1.0 - alpha)
        offset = kept if offset is None else kept.add_(offset, alpha=alpha)
    if gain is not None:
        y.mul_(gain)
    if offset is not None:
        y.add_(offset)
    if slope_after != 1.0:
        F.leaky_relu_(y, slope_after)
    return y


def _content(
    x: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    slope: float,
) -> Tensor:
    """`reference.content` in one new tensor."""
    v = x.clone() if x.dtype == dtype else x.to(dtype)
    if noise is not None and noise_weight is not None:
        v.addcmul_(noise if noise.dtype == dtype else noise.to(dtype), noise_weight)
    if bias is not None:
        v.add_(bias)
    return v if slope == 1.0 else F.leaky_relu_(v, slope)


def _batch_norm(x: Tensor, gain: Tensor | None, offset: Tensor | None, eps: float) -> Tensor:
    """Batch norm with a channel for every plane of x, in half precision: float32 inside, rounded once.

    Without float32 parameters it would round the statistics too.
    """
    batch, channels, height, width = x.shape
    planes = batch * channels
    gain = x.new_ones(planes, dtype=torch.float32) if gain is None else _of_planes(gain, batch, channels)
    offset = (
        x.new_zeros(planes, dtype=torch.float32) if offset is None else _of_planes(offset, batch, channels)
    )
    v = x.view(1, planes, height, width)
    return torch.batch_norm(v, gain, offset, None, None, True, 0.0, eps, False).view(x.shape)


def _of_planes(value: Tensor, batch: int, channels: int) -> Tensor:
    return value.reshape(-1) if len(value) == batch else value.expand(batch, channels, 1, 1).reshape(-1)
