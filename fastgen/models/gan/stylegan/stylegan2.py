"""StyleGAN2 (Karras et al. 2020): styles scale the weights of convolutions, whose outputs are brought back to 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....config import bounded
from ....errors import ConfigError
from .layers import SLOPE, EqualizedLinear, upfirdn, upsampled
from .mapping import MAX_TAPS, MAX_WIDTHS, StyleConfig, StyleGenerator


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config(StyleConfig):
    """See :class:`StyleConfig`; the defaults are the paper's configuration F for 1024x1024 pixels.

    blur: taps of the filter behind each upsampling, of features and of the image.
    eps: added to the sum of squares that a modulated filter is divided by. equalized: whether that filter is first
        multiplied by the constant of the equalised learning rate, which the division takes out again but for eps;
        the code of StyleGAN2-ADA leaves it out.
    clamp: the largest magnitude of a layer's output, None: no limit (256 in StyleGAN2-ADA, for float16).
    """

    widths: tuple[int, ...] = bounded(
        1, 8192, default=(512, 512, 512, 512, 512, 256, 128, 64, 32), max_items=MAX_WIDTHS
    )
    blur: tuple[int, ...] = bounded(1, 1_000_000, default=(1, 3, 3, 1), max_items=MAX_TAPS)
    eps: float = bounded(1e-12, 1.0, default=1e-8)
    equalized: bool = True
    clamp: float | None = bounded(1e-3, 1e6, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blur:
            raise ConfigError("expected at least one tap", argument="blur")


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    demodulate: bool = True,
    eps: float = 1e-8,
    up: bool = False,
    blur: Sequence[float] = (),
) -> Tensor:
    """A convolution by weight * style, a filter of its own for each sample (Karras et al. 2020, eq. 1 and 3).

    x: [B, I, H, W]; weight: [O, I, k, k], k odd; style: [B, I]. demodulate: each of a sample's filters is divided by
    its norm, sqrt(sum of squares + eps). up: to twice the sides, by a transposed convolution and the filter `blur`.

    The filters are not made: a style scales the channels of x, a norm those of the result, which is the same thing.

    Returns [B, O, H, W], or [B, O, 2 H, 2 W].
    """
    kernel, count = weight.shape[-1], len(blur)
    x = x * style[:, :, None, None]
    if up:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        # Of the 2 H + k - 2 rows 2 H remain, centred; k - 1 of the filter's pixels are the convolution's own.
        before, after = (count + 1) // 2 - kernel // 2, (count - 2) // 2 - (kernel - 1) // 2 + 1
        x = upfirdn(x, blur, padding=(before, after), gain=4.0)
    else:
        x = F.conv2d(x, weight, padding=kernel // 2)
    if demodulate:
        # [B, O]: the squares of a filter, summed over its pixels once for all samples.
        norms = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).t() + eps)
        x = x * norms[:, :, None, None]
    return x


class ModulatedLayer(nn.Module):
    """x -> sqrt(2) LeakyReLU(modulated convolution + strength * noise + bias). affine: w -> the style.

    noise_strength: a number. up: whether the sides are doubled.
    """

    def __init__(self, inputs: int, outputs: int, up: bool, config: StyleGAN2Config) -> None:
        super().__init__()
        self.up, self.blur = up, config.blur
        self.eps, self.clamp = config.eps, config.clamp
        self.scale = 1 / math.sqrt(inputs * 9) if config.equalized else 1.0
        self.affine = EqualizedLinear(config.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """x: [B, inputs, H, W]; w: [B, w_dim]; noise: [B or 1, 1, H, W] of the result's size."""
        weight = self.weight * self.scale
        x = modulated_conv(x, weight, self.affine(w), eps=self.eps, up=self.up, blur=self.blur)
        if noise is not None:
            x = x + self.noise_strength * noise
        x = F.leaky_relu(x + self.bias[:, None, None], SLOPE) * math.sqrt(2)
        return clamped(x, self.clamp)


class ToRGB(nn.Module):
    """Channels of the image of features, by a modulated convolution of one pixel that is not demodulated."""

    def __init__(self, inputs: int, config: StyleGAN2Config) -> None:
        super().__init__()
        self.clamp, self.scale = config.clamp, 1 / math.sqrt(inputs)
        self.affine = EqualizedLinear(config.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(config.out_channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x: [B, inputs, H, W]; w: [B, w_dim]."""
        image = modulated_conv(x, self.weight * self.scale, self.affine(w), demodulate=False)
        return clamped(image + self.bias[:, None, None], self.clamp)


class Style2Synthesis(nn.Module):
    """Images [B, C, H, W] of styles [B, num_ws, w_dim]: the sum of every resolution's image, each made larger (skip).

    Layer i sees style i. The image of a resolution sees the style of the layer behind, the last one a style of its own.
    """

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        self.const = nn.Parameter(torch.randn(1, widths[0], config.bottom, config.bottom))
        layers = [ModulatedLayer(widths[0], widths[0], False, config)]
        for before, after in itertools.pairwise(widths):
            layers.append(ModulatedLayer(before, after, True, config))
            layers.append(ModulatedLayer(after, after, False, config))
        self.layers = nn.ModuleList(layers)
        self.to_rgb = nn.ModuleList(ToRGB(width, config) for width in widths)

    def forward(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """noise: an image for each layer; None: no noise."""
        x, image = self.const.expand(ws.shape[0], -1, -1, -1), None
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i], None if noise is None else noise[i])
            if i % 2 == 0:
                shown = self.to_rgb[i // 2](x, ws[:, i + 1])
                image = shown if image is None else upsampled(image, self.config.blur) + shown
        assert image is not None
        return image


class StyleGAN2(StyleGenerator):
    """See :class:`StyleGenerator`; a style for each layer, and one for the last resolution's image."""

    def __init__(self, config: StyleGAN2Config) -> None:
        synthesis = Style2Synthesis(config)
        sides = [config.bottom] + [side for side in config.sides[1:] for _ in range(2)]
        shapes = tuple((side, side) for side in sides)
        super().__init__(config, synthesis, len(synthesis.layers) + 1, shapes)


def clamped(x: Tensor, limit: float | None) -> Tensor:
    """x within [-limit, limit]; x itself without a limit."""
    return x if limit is None else x.clamp(-limit, limit)
