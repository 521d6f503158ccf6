"""The affine coupling as its formula reads, an element at a time: independent of the package."""

import math

import torch
from torch import Tensor


def scale_of(s: float, kind: str, eps: float, bound: float, slope: float, rescale: float) -> float:
    """The positive scale."""
    if kind == "additive":
        return 1.0
    if kind == "exp":  # RealNVP
        return math.exp(s)
    if kind == "sigmoid":  # Glow; nflows with eps = 1e-3
        return 1.0 / (1.0 + math.exp(-(s + 2.0))) + eps
    if kind == "tanh":
        return math.exp(bound * rescale * (math.exp(2.0 * s) - 1.0) / (math.exp(2.0 * s) + 1.0))
    assert kind == "soft_clip"  # zuko's MonotonicAffineTransform
    return math.exp(s / (1.0 + abs(s / math.log(slope))))


def places(channels: int, channel: int, parameters: str) -> tuple[int, int]:
    """Channels of the network's output that hold s and t."""
    return {
        "scale_shift": (channel, channels + channel),
        "shift_scale": (channels + channel, channel),
        "scale_shift_interleaved": (2 * channel, 2 * channel + 1),
        "shift_scale_interleaved": (2 * channel + 1, 2 * channel),
    }[parameters]


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
    """y and log_det in float64."""
    y = x.double().clone(memory_format=torch.contiguous_format)
    totals = torch.zeros(x.shape[0] if log_det else 0, dtype=torch.float64)
    image = x.shape if x.dim() == 4 else (*x.shape, 1, 1)
    flat = y.view(image)
    raw = network.double().reshape(image[0], -1, *image[2:])
    for b, c, h, w in torch.cartesian_prod(*(torch.arange(size) for size in image)).tolist():
        if parity is not None and (h + w if x.dim() == 4 else c) % 2 != parity:
            continue
        if mask is not None:
            at = (c, h, w) if x.dim() == 4 else (c,)
            if not mask[tuple(min(i, size - 1) for i, size in zip(at, mask.shape, strict=True))]:
                continue
        at_s, at_t = (0, c) if scale == "additive" else places(image[1], c, parameters)
        factor = 1.0 if rescale is None else float(rescale[c])
        a = scale_of(float(raw[b, at_s, h, w]), scale, eps, bound, slope, factor)
        value, t = float(flat[b, c, h, w]), float(raw[b, at_t, h, w])
        if inverse:
            flat[b, c, h, w] = value / a - t if shift_first else (value - t) / a
        else:
            flat[b, c, h, w] = (value + t) * a if shift_first else value * a + t
        if log_det:
            totals[b] += -math.log(a) if inverse else math.log(a)
    return y, totals
