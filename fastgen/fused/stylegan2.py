"""The twin of StyleGAN2: see `stylegan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen_kernels import modulated_conv, upfirdn, weight_energy

from ..models.building import without_values
from ..models.gan.stylegan.layers import SLOPE
from ..models.gan.stylegan.stylegan2 import ModulatedLayer, Style2Synthesis, StyleGAN2, ToRGB
from .stylegan import Added, Blur, FusedStyleGenerator, Styles, convolution
from .transposed import transposed

GAIN = math.sqrt(2)


class FusedStyleGAN2(FusedStyleGenerator):
    """`StyleGAN2`. kernels: whether its layers are those of a GPU; None: as its device is."""

    def __init__(self, network: StyleGAN2, kernels: bool | None = None) -> None:
        kernels = network.w_mean.is_cuda if kernels is None else kernels
        made = FusedStyle2Synthesis(network.synthesis, list(network.noises), kernels)  # type: ignore[arg-type]
        super().__init__(network, made)


class FusedStyle2Synthesis(nn.Module):
    """`Style2Synthesis`; see there."""

    constant: Tensor

    def __init__(self, network: Style2Synthesis, noises: Sequence[Tensor], kernels: bool) -> None:
        super().__init__()
        config = self.config = network.config
        layers: list[Any] = list(network.layers)
        images: list[Any] = list(network.to_rgb)
        affine = [(layer.affine, i) for i, layer in enumerate(layers)]
        self.styles = Styles(affine + [(image.affine, 2 * i + 1) for i, image in enumerate(images)])
        constant = network.const.detach().contiguous(memory_format=torch.channels_last)
        self.register_buffer("constant", constant)
        make: Any = ModulatedByKernels if kernels else ModulatedInPlace
        self.layers = nn.ModuleList(make(layer, noise) for layer, noise in zip(layers, noises, strict=True))
        self.to_rgb = nn.ModuleList(FusedToRGB(image) for image in images)
        self.enlarged = Enlarged(config.blur, config.out_channels, constant, kernels)
        # The layer behind one that doubles the sides is all that sees its result, and may have its style in it.
        self.joined = kernels and config.clamp is None

    def forward(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """See ``Style2Synthesis``."""
        count = len(self.layers)
        styles = self.styles(ws)
        x, image = self.constant.expand(len(ws), -1, -1, -1), None
        every: list[Any] = list(self.layers)
        for i, layer in enumerate(every):
            z = None if noise is None else noise[i]
            if self.joined and i:
                x = layer(x, styles[i], z, i % 2 == 0, styles[i + 1] if i % 2 else None)
            else:
                x = layer(x, styles[i], z)
            if i % 2 == 0:
                shown = self.to_rgb[i // 2](x, styles[count + i // 2])
                image = shown if image is None else self.enlarged(image).add_(shown)
        assert image is not None
        return image


class ModulatedInPlace(nn.Module):
    """`ModulatedLayer` on a CPU: sqrt(2) is in the norms and in what is added, which are applied in one pass."""

    energy: Tensor

    def __init__(self, layer: ModulatedLayer, noise: Tensor) -> None:
        super().__init__()
        self.clamp, dtype = layer.clamp, layer.weight.dtype
        weight = layer.weight.detach().double() * layer.scale
        # gain / sqrt(n + eps) = 1 / sqrt(n / gain^2 + eps / gain^2)
        self.eps = layer.eps / GAIN**2
        working = torch.promote_types(dtype, torch.float32)
        self.register_buffer("energy", (weight.square().sum((2, 3)) / GAIN**2).t().to(working).contiguous())
        self.blur: Blur | None = None
        if layer.up:
            self.conv = doubled(weight.to(dtype))
            self.blur = Blur(layer.blur, len(weight), *ends(len(layer.blur), 3), layer.bias, gain=4.0)
        else:
            self.conv = convolution(weight.to(dtype), None)
        self.added = Added(noise, layer.noise_strength, layer.bias, GAIN)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        """x: [B, inputs, H, W]; style: [B, inputs]."""
        y = self.conv(x * style[:, :, None, None])
        if self.blur is not None:
            y = self.blur(y)
        norms = (style.to(self.energy.dtype).square() @ self.energy).add_(self.eps).rsqrt_().to(y.dtype)
        y = F.leaky_relu_(self.added.onto(y, noise, norms[:, :, None, None]), SLOPE)
        return y if self.clamp is None else y.clamp_(-self.clamp, self.clamp)


class ModulatedByKernels(nn.Module):
    """`ModulatedLayer` on a GPU, as `fastgen_kernels.modulated_conv`."""

    energy: Tensor
    filter: Tensor | None
    strength: Tensor
    bias: Tensor

    def __init__(self, layer: ModulatedLayer, noise: Tensor) -> None:
        super().__init__()
        del noise  # is an argument of the call
        self.eps, self.clamp, self.up = layer.eps, layer.clamp, layer.up
        weight = layer.weight.detach().double() * layer.scale
        working = torch.promote_types(layer.weight.dtype, torch.float32)
        self.register_buffer("energy", weight_energy(weight).to(working))
        weight = weight.to(layer.weight.dtype)
        # As the library reads it.
        order = weight.transpose(0, 1) if layer.up else weight
        order = order.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(order, requires_grad=False)
        row = None
        if layer.up:
            taps = torch.tensor(layer.blur, dtype=torch.float64, device=weight.device)
            row = (taps / math.fsum(layer.blur)).to(working)
        self.register_buffer("filter", row)
        self.register_buffer("strength", layer.noise_strength.detach().reshape(1))
        self.register_buffer("bias", layer.bias.detach())

    def forward(
        self,
        x: Tensor,
        style: Tensor,
        noise: Tensor | None,
        scaled: bool = False,
        following: Tensor | None = None,
    ) -> Tensor:
        """scaled: x has been multiplied by style. following: [B, outputs], what the result is multiplied by."""
        y = modulated_conv(
            x, self.weight.transpose(0, 1) if self.up else self.weight, style, eps=self.eps, energy=self.energy,
            scaled=scaled, up=2 if self.up else 1, filter=self.filter, noise=noise,
            noise_weight=None if noise is None else self.strength, bias=self.bias, slope=SLOPE, act_gain=GAIN,
            post_scale=following,
        )  # fmt: skip
        return y if self.clamp is None else y.clamp_(-self.clamp, self.clamp)


class FusedToRGB(nn.Module):
    """`ToRGB` as a product of pixels by a matrix for each sample; few numbers, so that the style is in the matrix."""

    def __init__(self, layer: ToRGB) -> None:
        super().__init__()
        self.clamp, dtype = layer.clamp, layer.weight.dtype
        matrix = (layer.weight.detach().double().flatten(1) * layer.scale).t().to(dtype)  # [inputs, C]
        self.register_buffer("matrix", matrix.contiguous())
        self.register_buffer("bias", layer.bias.detach())

    matrix: Tensor
    bias: Tensor

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x: [B, inputs, H, W]; style: [B, inputs]."""
        batch, inputs, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, -1, inputs)
        y = torch.baddbmm(self.bias, pixels, style[:, :, None] * self.matrix)
        y = y if self.clamp is None else y.clamp_(-self.clamp, self.clamp)
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)


class Enlarged(nn.Module):
    """`upsampled` of images of few channels: on a CPU one convolution for the four phases, whose pixels are spread."""

    filter: Tensor

    def __init__(self, taps: Sequence[float], channels: int, like: Tensor, kernels: bool = False) -> None:
        super().__init__()
        self.before, self.after = (len(taps) + 1) // 2, (len(taps) - 2) // 2
        row = torch.tensor(taps, dtype=torch.float64, device=like.device) / math.fsum(taps)
        self.register_buffer("filter", row.to(torch.promote_types(like.dtype, torch.float32)))
        self.kernels = kernels
        if not kernels:
            # Output 2i + a is the sum over taps k of flipped[k] * input[i + (a - before + k) / 2], where that is whole.
            places = [(a - self.before + k) // 2 for a in range(2) for k in range(len(taps))
                      if (a - self.before + k) % 2 == 0]  # fmt: skip
            reach = max(-min(places), max(places), 0)
            line = row.new_zeros(2, 2 * reach + 1)
            for a in range(2):
                for k, tap in enumerate(row.flip(0).tolist()):
                    if (a - self.before + k) % 2 == 0:
                        line[a, (a - self.before + k) // 2 + reach] += tap
            phases = torch.einsum("aj,bk->abjk", line, line).flatten(0, 1) * 4.0
            eye = torch.eye(channels, dtype=torch.float64, device=like.device)
            weight = torch.einsum("oc,pjk->opcjk", eye, phases).flatten(
                0, 1
            )  # [4 C, C, j, k], as pixels are spread
            self.conv = convolution(weight.to(like.dtype), None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2 H, 2 W]."""
        if self.kernels:
            return upfirdn(x, self.filter, up=2, padding=(self.before, self.after), gain=4.0)
        return F.pixel_shuffle(self.conv(x), 2)


def doubled(weight: Tensor) -> nn.Module:
    """The transposed convolution of stride 2 by weight [O, I, k, k]."""
    outputs, inputs, size, _ = weight.shape
    with without_values():
        conv = nn.ConvTranspose2d(inputs, outputs, size, stride=2, bias=False)
    conv.weight = nn.Parameter(weight.transpose(0, 1).contiguous(), requires_grad=False)
    return transposed(conv)


def ends(count: int, kernel: int) -> tuple[int, int]:
    """Pixels of padding for a filter of `count` taps behind a transposed convolution of stride 2."""
    return (count + 1) // 2 - kernel // 2, (count - 2) // 2 - (kernel - 1) // 2 + 1
