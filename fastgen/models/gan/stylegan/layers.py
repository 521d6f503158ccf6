"""What StyleGAN and StyleGAN2 are made of: layers with an equalised learning rate, and resampling by a FIR filter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of every LeakyReLU
EPS = 1e-8  # of the division by a root mean square (Karras et al. 2018, section 4.2)


class EqualizedLinear(nn.Module):
    """x [..., inputs] -> [..., outputs], with an equalised learning rate (Karras et al. 2018, section 4.1).

    Weights are kept at variance 1 / lr_multiplier^2 and multiplied by gain * lr_multiplier / sqrt(inputs) when they are
    used, biases by lr_multiplier: Adam then moves them lr_multiplier times as fast as others, whatever their size.
    `effective` is what is used.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        gain: float = 1.0,
        lr_multiplier: float = 1.0,
        bias: float | None = 0.0,
    ) -> None:
        super().__init__()
        self.lr_multiplier = lr_multiplier
        self.scale = gain * lr_multiplier / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """(weight [outputs, inputs], bias [outputs] or None) of the plain linear layer that this one is."""
        return self.weight * self.scale, None if self.bias is None else self.bias * self.lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.effective())


class EqualizedConv(nn.Module):
    """A convolution [B, inputs, H, W] -> [B, outputs, H, W] of an odd kernel, with an equalised learning rate.

    stride, padding: as of ``nn.Conv2d``; padding: None keeps the sides where the stride is 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        gain: float = 1.0,
        bias: bool = True,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.scale = gain / math.sqrt(inputs * kernel * kernel)
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """(weight [outputs, inputs, kernel, kernel], bias [outputs] or None) of the plain convolution that this is."""
        return self.weight * self.scale, self.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *self.effective(), stride=self.stride, padding=self.padding)


def upfirdn(
    x: Tensor,
    taps: Sequence[float],
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
    gain: float = 1.0,
) -> Tensor:
    """Zeros between pixels, zeros around the image, a separable FIR filter, every `down`-th pixel, in that order.

    x: [B, C, H, W]. taps: of both directions, divided by their sum; the filter is a true convolution, which mirrors
    them. up: each pixel is followed by up - 1 zeros. padding: zeros before and after either direction; negative ones
    are pixels that are cut off. gain: of the result; up^2 keeps the mean of an image that is made larger.

    Returns [B, C, H', W'] with H' = ceil((H up + sum(padding) - len(taps) + 1) / down).
    """
    if up > 1:
        spread = F.pad(x[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1))
        x = spread.reshape(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    x = F.pad(x, (*padding, *padding))
    # By fills, on the device: a copy from the host could not be recorded in a graph, and a buffer would stand in files.
    total = math.fsum(taps)
    row = torch.stack([x.new_full((), tap / total) for tap in reversed(taps)])
    kernel = (torch.outer(row, row) * gain).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, stride=down, groups=x.shape[1])


def blur(x: Tensor, taps: Sequence[float]) -> Tensor:
    """x [B, C, H, W] filtered, of the same size; without taps x itself."""
    if not taps:
        return x
    return upfirdn(x, taps, padding=(len(taps) // 2, (len(taps) - 1) // 2))


def upsampled(x: Tensor, taps: Sequence[float]) -> Tensor:
    """x [B, C, H, W] with the sides doubled by a FIR filter, [B, C, 2 H, 2 W]."""
    count = len(taps)
    return upfirdn(x, taps, up=2, padding=((count + 1) // 2, (count - 2) // 2), gain=4.0)


def downsampled(x: Tensor, taps: Sequence[float]) -> Tensor:
    """x [B, C, H, W] with even sides halved by a FIR filter, [B, C, H / 2, W / 2]."""
    count = len(taps)
    return upfirdn(x, taps, down=2, padding=((count - 1) // 2, (count - 2) // 2))


def unit_rms(x: Tensor) -> Tensor:
    """Rows of x [B, N] divided by their root mean square (PixelNorm of a vector)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPS)
