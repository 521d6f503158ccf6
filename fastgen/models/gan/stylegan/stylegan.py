"""StyleGAN (Karras et al. 2019): styles set the mean and deviation of every layer's channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....config import bounded, one_of
from .layers import SLOPE, EqualizedConv, EqualizedLinear, blur
from .mapping import MAX_TAPS, MAX_WIDTHS, StyleConfig, StyleGenerator


@dataclass(frozen=True, kw_only=True)
class StyleGANConfig(StyleConfig):
    """See :class:`StyleConfig`; the defaults are the paper's network for 1024x1024 pixels, of a fixed resolution.

    input: what the first layer sees: "constant", learned (configuration D of table 1), or "latent", a linear layer of
        the first style, as the paper's code has it.
    blur: taps of the filter behind each upsampling; none: no filter. bias_before_blur: whether the bias of a
        convolution that upsamples is added before the filter, which fades it at the border, or behind the noise.
    shared_noise: whether both layers of a resolution see one image of noise.
    eps: added to the variances of AdaIN.
    """

    widths: tuple[int, ...] = bounded(
        1, 8192, default=(512, 512, 512, 512, 256, 128, 64, 32, 16), max_items=MAX_WIDTHS
    )
    input: str = one_of("constant", "latent", default="constant")
    blur: tuple[int, ...] = bounded(1, 1_000_000, default=(1, 2, 1), max_items=MAX_TAPS)
    bias_before_blur: bool = False
    shared_noise: bool = False
    eps: float = bounded(1e-12, 1.0, default=1e-8)

    least: ClassVar[int] = 2  # a deviation needs two pixels


class StyleLayer(nn.Module):
    """x -> AdaIN(LeakyReLU(conv(x) + strength * noise + bias), style), at a resolution of its own.

    kind: "none", without a convolution, of the constant; "same"; "up", at twice the sides: each pixel four times, the
    convolution, the filter. noise_strength: [outputs]. affine: w -> the style: scales, [outputs], then shifts.
    """

    def __init__(self, inputs: int, outputs: int, kind: str, config: StyleGANConfig) -> None:
        super().__init__()
        self.kind, self.eps, self.outputs = kind, config.eps, outputs
        self.blur = config.blur if kind == "up" else ()
        self.bias_before_blur = config.bias_before_blur and kind == "up"
        self.conv = None
        if kind != "none":
            self.conv = EqualizedConv(inputs, outputs, 3, gain=math.sqrt(2), bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(outputs))
        self.affine = EqualizedLinear(config.w_dim, 2 * outputs)
        assert self.affine.bias is not None
        with torch.no_grad():
            self.affine.bias[:outputs].fill_(1.0)

    def convolved(self, x: Tensor) -> Tensor:
        """Up to the noise and the bias that stands behind it."""
        if self.conv is None:
            return x
        if self.kind == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.conv(x)
        if self.bias_before_blur:
            x = x + self.bias[:, None, None]
        return blur(x, self.blur)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """x: [B, inputs, H, W]; w: [B, w_dim]; noise: [B or 1, 1, H, W] of the result's size."""
        x = self.convolved(x)
        if noise is not None:
            x = x + self.noise_strength[:, None, None] * noise
        if not self.bias_before_blur:
            x = x + self.bias[:, None, None]
        x = F.leaky_relu(x, SLOPE)
        scale, shift = self.affine(w)[..., None, None].split(self.outputs, dim=1)
        return scale * F.instance_norm(x, eps=self.eps) + shift


class StyleSynthesis(nn.Module):
    """Images [B, C, H, W] of styles [B, num_ws, w_dim]: two layers a resolution, then a convolution of one pixel.

    noise_of: which image of noise each layer sees.
    """

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        shape = widths[0], config.bottom, config.bottom
        self.const = self.dense = None
        if config.input == "constant":
            self.const = nn.Parameter(torch.ones(1, *shape))
        else:
            # The gain sqrt(2) / 4 is the one of the paper's code.
            self.dense = EqualizedLinear(config.w_dim, math.prod(shape), gain=math.sqrt(2) / 4, bias=None)
        layers = [
            StyleLayer(widths[0], widths[0], "none", config),
            StyleLayer(widths[0], widths[0], "same", config),
        ]
        for before, after in itertools.pairwise(widths):
            layers.append(StyleLayer(before, after, "up", config))
            layers.append(StyleLayer(after, after, "same", config))
        self.layers = nn.ModuleList(layers)
        self.to_rgb = EqualizedConv(widths[-1], config.out_channels, 1)
        self.noise_of = tuple(i // 2 if config.shared_noise else i for i in range(len(layers)))

    def first(self, ws: Tensor) -> Tensor:
        """What the first layer sees, [B, widths[0], bottom, bottom]."""
        if self.const is not None:
            return self.const.expand(ws.shape[0], -1, -1, -1)
        assert self.dense is not None
        config = self.config
        x: Tensor = self.dense(ws[:, 0])
        return x.view(-1, config.widths[0], config.bottom, config.bottom)

    def forward(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """noise: an image for each of the generator's `noise_shapes`; None: no noise."""
        x = self.first(ws)
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i], None if noise is None else noise[self.noise_of[i]])
        images: Tensor = self.to_rgb(x)
        return images


class StyleGAN(StyleGenerator):
    """See :class:`StyleGenerator`; a style for each of the two layers of a resolution, the coarsest first."""

    def __init__(self, config: StyleGANConfig) -> None:
        synthesis = StyleSynthesis(config)
        repeats = 1 if config.shared_noise else 2
        shapes = tuple((side, side) for side in config.sides for _ in range(repeats))
        super().__init__(config, synthesis, len(synthesis.layers), shapes)
