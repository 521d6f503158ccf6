"""Twins of the style-based generators: factors of the equalised learning rate in the weights, few passes over images.

Weights are multiplied by their factors once, in float64. What a layer adds that does not depend on the sample, bias and
fixed noise, is one image; the styles of all layers are one product where they are of one w. On a GPU the layers are the
operations `modulated_conv`, `upfirdn` and `adain` of ``fastgen_kernels``; on a CPU oneDNN's convolutions with filters
that are laid out beforehand, channels-last, with the rest in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen_kernels import adain, upfirdn

from ..models.building import without_values
from ..models.gan.stylegan.layers import SLOPE, EqualizedLinear, unit_rms
from ..models.gan.stylegan.mapping import Mapping, StyleGenerator
from ..models.gan.stylegan.stylegan import StyleGAN, StyleLayer, StyleSynthesis
from ..models.resample import Upsample
from .onednn import OneDNNConv, OneDNNUp, takes, takes_up

# Elements up to which the image that a layer adds, of all its channels, is kept; else bias and noise are added apart.
KEPT = 1 << 20


class FusedStyleGenerator(nn.Module):
    """`StyleGenerator`: the same `mapping`, `truncate` and `synthesis`; see there."""

    w_mean: Tensor

    def __init__(self, network: StyleGenerator, synthesis: nn.Module) -> None:
        super().__init__()
        self.config, self.num_ws, self.noise_shapes = network.config, network.num_ws, network.noise_shapes
        self.mapping = FusedMapping(network.mapping)
        self.synthesis = synthesis
        self.register_buffer("w_mean", network.w_mean.detach())
        self.noises = tuple(network.noises)

    truncate = StyleGenerator.truncate
    forward = StyleGenerator.forward


class FusedMapping(nn.Module):
    """`Mapping`: a label as a row of a table, the activations' gain in the weights, the activations in place."""

    def __init__(self, network: Mapping) -> None:
        super().__init__()
        # LeakyReLU(x) * gain = LeakyReLU(x * gain).
        layers: list[Any] = list(network.layers)
        weights = [_effective(layer, math.sqrt(2)) for layer in layers]
        dtype: torch.dtype = layers[0].weight.dtype
        self.table: nn.Embedding | None = None
        if network.embedding is not None:
            (first, bias), (embedding, shift) = weights[0], _effective(network.embedding)
            assert bias is not None
            assert shift is not None
            latent = first.shape[1] - len(embedding)
            of_label = unit_rms(embedding.t() + shift) @ first[:, latent:].t() + bias
            with without_values():
                self.table = nn.Embedding(*of_label.shape)
            self.table.weight = _frozen(of_label, dtype)
            weights[0] = first[:, :latent], None
        self.layers = nn.ModuleList(_linear(weight, bias, dtype) for weight, bias in weights)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See ``Mapping``."""
        x = unit_rms(z)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == 0 and self.table is not None:
                x += self.table(labels)
            x = F.leaky_relu_(x, SLOPE)
        return x


class Styles(nn.Module):
    """What the layers' affine maps make of ws [B, num_ws, w_dim]: for each a tensor [B, its outputs].

    layers: the maps, and which style each of them sees.
    """

    def __init__(self, layers: Sequence[tuple[EqualizedLinear, int]]) -> None:
        super().__init__()
        weights, biases = zip(*(_effective(layer) for layer, _ in layers), strict=True)
        self.linear = _linear(torch.cat(weights), torch.cat(biases), layers[0][0].weight.dtype)
        self.sizes = [len(weight) for weight in weights]
        self.seen = [i for _, i in layers]

    def forward(self, ws: Tensor) -> Sequence[Tensor]:
        """One product where all styles are one, as ``expand`` makes them."""
        if ws.shape[1] == 1 or ws.stride(1) == 0:
            found: Sequence[Tensor] = self.linear(ws[:, 0]).split(self.sizes, dim=1)
            return found
        parts = zip(self.linear.weight.split(self.sizes), self.linear.bias.split(self.sizes), strict=True)
        return [F.linear(ws[:, i], *part) for i, part in zip(self.seen, parts, strict=True)]


class Added(nn.Module):
    """What a layer adds behind its convolution: strength * noise + bias, times a gain.

    noise: the layer's fixed noise, [1, 1, H, W]; the sum of it is kept, where it is not too large. strength: [outputs]
    or a number. bias: [outputs], or None.
    """

    fixed: Tensor | None
    bare: Tensor
    strength: Tensor

    def __init__(self, noise: Tensor, strength: Tensor, bias: Tensor | None, gain: float = 1.0) -> None:
        super().__init__()
        dtype, outputs = noise.dtype, 1 if bias is None else len(bias)
        wide = strength.detach().double().reshape(-1, 1, 1) * gain  # [outputs or 1, 1, 1]
        bare = torch.zeros(outputs, 1, 1, dtype=torch.float64, device=noise.device)
        if bias is not None:
            bare = bias.detach().double()[:, None, None] * gain
        self.noise = (noise,)  # known by its memory, and not a buffer of this module
        fixed = None
        if max(len(wide), len(bare)) * noise.numel() <= KEPT:
            fixed = (wide * noise.double() + bare).to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("strength", wide.to(dtype))
        self.register_buffer("bare", bare.to(dtype))
        self.register_buffer("fixed", fixed)

    def is_fixed(self, noise: Tensor) -> bool:
        """Whether it is the layer's fixed noise, itself or seen as many times as there are samples."""
        fixed = self.noise[0]
        if noise is fixed:
            return True
        once = len(noise) == 1 or noise.stride(0) == 0
        same = noise.shape[1:] == fixed.shape[1:] and noise.stride()[1:] == fixed.stride()[1:]
        # Where a compiler looks on, tensors have no memory.
        return once and same and not torch.compiler.is_compiling() and noise.data_ptr() == fixed.data_ptr()

    def onto(self, y: Tensor, noise: Tensor | None, factor: Tensor | None = None) -> Tensor:
        """y * factor plus all of it, in place. factor: [B, outputs, 1, 1]."""
        offset = self.bare if noise is None else self.fixed if self.is_fixed(noise) else None
        if offset is not None:
            return y.add_(offset) if factor is None else torch.addcmul(offset, y, factor, out=y)
        assert noise is not None
        y = y.add_(self.bare) if factor is None else torch.addcmul(self.bare, y, factor, out=y)
        return y.addcmul_(noise, self.strength)


class FusedStyleGAN(FusedStyleGenerator):
    """`StyleGAN`. kernels: whether its layers are those of a GPU; None: as its device is."""

    def __init__(self, network: StyleGAN, kernels: bool | None = None) -> None:
        kernels = network.w_mean.is_cuda if kernels is None else kernels
        made = FusedStyleSynthesis(network.synthesis, list(network.noises), kernels)  # type: ignore[arg-type]
        super().__init__(network, made)


class FusedStyleSynthesis(nn.Module):
    """`StyleSynthesis`; of a learned constant the first layer's norm is computed once."""

    constant: Tensor | None

    def __init__(self, network: StyleSynthesis, noises: Sequence[Tensor], kernels: bool) -> None:
        super().__init__()
        config = self.config = network.config
        self.noise_of = network.noise_of
        layers: list[Any] = list(network.layers)
        self.styles = Styles([(layer.affine, i) for i, layer in enumerate(layers)])
        self.shape = config.widths[0], config.bottom, config.bottom
        constant: Tensor | None = None
        self.dense: nn.Linear | None = None
        if network.const is not None:
            constant = network.const.detach().contiguous(memory_format=torch.channels_last)
        else:
            assert network.dense is not None
            weight, _ = _effective(network.dense)
            # Channels last.
            weight = weight.unflatten(0, self.shape).permute(1, 2, 0, 3).flatten(0, 2)
            self.dense = _linear(weight, None, layers[0].bias.dtype)
        self.register_buffer("constant", constant)
        self.layers = nn.ModuleList(
            FusedStyleLayer(layer, noises[of], kernels, None if i else constant)
            for i, (layer, of) in enumerate(zip(layers, self.noise_of, strict=True))
        )
        weight, bias = network.to_rgb.effective()
        self.to_rgb = convolution(weight, bias)

    def forward(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """See ``StyleSynthesis``."""
        if self.constant is not None:
            x = self.constant
        else:
            assert self.dense is not None
            channels, height, width = self.shape
            x = self.dense(ws[:, 0]).view(-1, height, width, channels).permute(0, 3, 1, 2)
        every: list[Any] = list(self.layers)
        for i, (layer, style) in enumerate(zip(every, self.styles(ws), strict=True)):
            x = layer(x, style, None if noise is None else noise[self.noise_of[i]])
        images: Tensor = self.to_rgb(x)
        return images


class FusedStyleLayer(nn.Module):
    """`StyleLayer`. Doubling and convolution are one transposed convolution, 16 products for 36.

    noise: the fixed one. kernels: whether the layer is a GPU's. constant: what the first layer always sees, before
    its noise, [1, outputs, H, W]: it is normalised here, with the fixed noise and with none.
    """

    def __init__(
        self, layer: StyleLayer, noise: Tensor, kernels: bool, constant: Tensor | None = None
    ) -> None:
        super().__init__()
        self.eps, self.outputs, self.kernels = layer.eps, layer.outputs, kernels
        early = layer.bias_before_blur
        self.conv: nn.Module | None = None
        self.blur: Blur | None = None
        if layer.conv is not None:
            weight, _ = _effective(layer.conv)
            make: Any = doubling if layer.kind == "up" else convolution
            self.conv = make(weight.to(layer.bias.dtype), layer.bias.detach() if early else None)
        if layer.blur:
            before, after = len(layer.blur) // 2, (len(layer.blur) - 1) // 2
            self.blur = Blur(layer.blur, layer.outputs, before, after, layer.bias, kernels=kernels)
        strength, bias = layer.noise_strength.detach(), None if early else layer.bias.detach()
        self.added = Added(noise, strength, bias)
        self.register_buffer("strength", strength)
        self.register_buffer("bias", bias)
        fixed, bare = (None if constant is None else self._normal(constant, z) for z in (noise, None))
        self.register_buffer("fixed", fixed)
        self.register_buffer("bare", bare)

    strength: Tensor
    bias: Tensor | None
    fixed: Tensor | None
    bare: Tensor | None

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        """x: [B, inputs, H, W], or [1, ...] of the constant. style: [B, 2 outputs]. noise: as for ``StyleLayer``."""
        scale, shift = style.split(self.outputs, dim=1)
        known = self.bare if noise is None else self.fixed if self.added.is_fixed(noise) else None
        if known is not None:
            return torch.addcmul(shift[..., None, None], known, scale[..., None, None])
        if self.conv is not None:
            x = self.conv(x)
        else:  # the constant is the network's own
            x = x.expand(len(style), -1, -1, -1).clone(memory_format=torch.channels_last)
        if self.blur is not None:
            x = self.blur(x)
        if self.kernels:
            weight = None if noise is None else self.strength
            return adain(
                x, scale, shift, noise=noise, noise_weight=weight, bias=self.bias, slope_before=SLOPE, eps=self.eps
            )  # fmt: skip
        return normalised(F.leaky_relu_(self.added.onto(x, noise), SLOPE), scale, shift, self.eps)

    def _normal(self, constant: Tensor, noise: Tensor | None) -> Tensor:
        """The constant as AdaIN normalises it, before the style."""
        y = F.leaky_relu_(self.added.onto(constant.to(torch.float64, copy=True), noise), SLOPE)
        found = F.instance_norm(y, eps=self.eps).to(constant.dtype)
        return found.contiguous(memory_format=torch.channels_last)


def normalised(y: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """scale * (y - mean) / sqrt(var + eps) + shift of every plane, y's own memory where it is channels-last.

    Sums over pixels are matrix products: PyTorch's own reductions of channels-last planes take several times as long.
    """
    batch, channels, height, width = y.shape
    pixels = height * width
    if y.dtype in (torch.float16, torch.bfloat16):
        return adain(y, scale, shift, eps=eps)
    rows = y.permute(0, 2, 3, 1).reshape(batch, pixels, channels)
    mean_of = torch.full((1, 1, 1), 1.0 / pixels, dtype=y.dtype, device=y.device).expand(batch, 1, pixels)
    rows -= torch.bmm(mean_of, rows)
    gain = torch.bmm(mean_of, rows.square()).add_(eps).rsqrt_().mul_(scale[:, None])
    rows = torch.addcmul(shift[:, None], rows, gain, out=rows)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Blur(nn.Module):
    """Images of `channels` channels filtered by taps, divided by their sum, times a gain; (before, after) pixels of
    padding. like: a tensor of the network's type, on its device. kernels: by `fastgen_kernels.upfirdn`.
    """

    filter: Tensor

    def __init__(
        self,
        taps: Sequence[float],
        channels: int,
        before: int,
        after: int,
        like: Tensor,
        gain: float = 1.0,
        kernels: bool = False,
    ) -> None:
        super().__init__()
        self.ends, self.gain = (before, after), gain
        row = torch.tensor(taps, dtype=torch.float64, device=like.device) / math.fsum(taps)
        self.register_buffer("filter", row.to(torch.promote_types(like.dtype, torch.float32)))
        self.conv: nn.Module | None = None
        if not kernels:
            # A convolution of PyTorch does not mirror its filter. Negative padding cuts pixels off.
            weight = (
                (torch.outer(row, row) * gain)
                .flip(0, 1)
                .expand(channels, 1, -1, -1)
                .to(like.dtype)
                .contiguous()
            )
            even = before == after >= 0
            self.cut = None if even else (before, after, before, after)
            self.conv = convolution(weight, None, padding=before if even else 0, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, channels, H', W']."""
        if self.conv is None:
            return upfirdn(x, self.filter, padding=self.ends, gain=self.gain)
        found: Tensor = self.conv(x if self.cut is None else F.pad(x, self.cut))
        return found


class Doubling(nn.Module):
    """`Upsample` as a transposed convolution, on a GPU and where oneDNN's own calls cannot be used."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        # Output row 2i + k - 1 gets from row i: w2 for k = 0, w1 + w2, w0 + w1, w0 for k = 3.
        sums = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
        wide = torch.einsum("aj,ocjk,bk->coab", sums, weight.double(), sums).to(weight.dtype)
        self.weight = nn.Parameter(wide.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


def doubling(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Each pixel four times, then a 3x3 convolution."""
    with without_values():
        block = Upsample(1)
    block.conv = _plain(weight, bias, 1, 1)
    return OneDNNUp(block) if takes_up(block) else Doubling(weight, bias)


def convolution(
    weight: Tensor, bias: Tensor | None, padding: int | None = None, groups: int = 1
) -> nn.Module:
    """A convolution of stride 1, that keeps the size where padding is None, in its fast form."""
    conv = _plain(weight.detach(), bias, weight.shape[2] // 2 if padding is None else padding, groups)
    return OneDNNConv(conv, prepacked=True) if takes(conv) else conv


def _plain(weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> nn.Conv2d:
    outputs, inputs, *size = weight.shape
    with without_values():
        made = nn.Conv2d(
            inputs * groups, outputs, (size[0], size[1]), padding=padding, groups=groups, bias=False
        )
    layout = torch.channels_last if weight.device.type == "cuda" else torch.contiguous_format
    made.weight = nn.Parameter(weight.contiguous(memory_format=layout), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def _effective(layer: Any, gain: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the plain layer that an equalised one is, times a gain; float64."""
    weight = layer.weight.detach().double() * (layer.scale * gain)
    lr: float = getattr(layer, "lr_multiplier", 1.0)
    return weight, None if layer.bias is None else layer.bias.detach().double() * (lr * gain)


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    with without_values():
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = _frozen(weight, dtype)
    if bias is not None:
        made.bias = _frozen(bias, dtype)
    return made


def _frozen(value: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(value.to(dtype).contiguous(), requires_grad=False)
