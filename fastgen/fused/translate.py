"""Twins of the networks of pix2pix: norm and activation in one step, filters laid out beforehand, nothing joined twice.

Statistics of images ("instance") stand behind every convolution; those of training ("running") are folded into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen_kernels import adain, pack_weight, patch_conv, patch_score

from ..models.translate.discriminators import (
    SLOPE,
    PatchDiscriminator,
    PixelDiscriminator,
    PixelDiscriminatorConfig,
)
from ..models.translate.layers import BatchNorm, ConvNorm, Masks
from ..models.translate.resnet import ResNetGenerator
from ..models.translate.unet import UNetGenerator
from .exactly import hooked
from .folding import merged
from .onednn import OneDNNConv, takes
from .transposed import transposed
from .twin import Twin

# Bytes of the largest tensor on the way, up to which images are worked on together on a CPU: beyond 32 MB the C
# library returns every tensor's pages to the system, which costs more than the arithmetic of a norm.
TOGETHER = 1 << 24
# Pixels whose values are added one after the other.
BAND = 1024


class Normed(nn.Module):
    """A norm by the statistics of each image, and an activation."""

    def __init__(self, norm: nn.Module, slope: float) -> None:
        super().__init__()
        self.norm, self.slope = norm, slope

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]; leaky_relu(norm(x)), with slope 1 for no activation."""
        y: Tensor = self.norm(x, "instance") if isinstance(self.norm, BatchNorm) else self.norm(x)
        return F.leaky_relu(y, self.slope)


class FusedNormed(Twin[Normed]):
    """`Normed` in one pass on a GPU, and in two on a CPU."""

    def __init__(self, norm: BatchNorm | nn.InstanceNorm2d, slope: float) -> None:
        super().__init__(Normed(norm, slope))
        self.eps, self.slope = norm.eps, slope
        # Without float32 parameters PyTorch would round the statistics of half precision, too.
        wide = [
            None if p is None else p.detach().to(torch.promote_types(p.dtype, torch.float32))
            for p in (norm.weight, norm.bias)
        ]
        self.weight, self.bias = wide

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu:
            return adain(x, self.weight, self.bias, eps=self.eps, slope_after=self.slope)
        weight, bias = self.weight, self.bias
        if weight is None and x.dtype != torch.float32:
            weight, bias = (
                x.new_ones(x.shape[1], dtype=torch.float32),
                x.new_zeros(x.shape[1], dtype=torch.float32),
            )
        parts = [instance_norm(image, weight, bias, self.eps) for image in x.split(1)]
        return activated(parts[0] if len(parts) == 1 else torch.cat(parts), self.slope)


def instance_norm(image: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`image` [1, C, H, W] normalised by its own statistics.

    By PyTorch's batch norm, the one of its norms that is fast for channels-last images. That adds a channel's pixels
    one after the other: 65,536 in float32 leave an error of 7e-6. Statistics of bands of `BAND` pixels, and the mean
    and variance of all by those of the bands (Chan et al. 1979), leave 1e-7 in about the same time.
    """
    _, _, height, width = image.shape
    rows = max(BAND // width, 1)
    if image.dtype != torch.float32 or rows >= height:
        return torch.batch_norm(image, weight, bias, None, None, True, 0.0, eps, False)
    bands = image.split(rows, 2)
    found = [torch.batch_norm_update_stats(band, None, None, 0.0) for band in bands]
    means, variances = (torch.stack(values) for values in zip(*found, strict=True))
    share = image.new_tensor([[band.shape[2] / height] for band in bands])
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square_())).sum(0)
    return torch.batch_norm(image, weight, bias, mean, variance, False, 0.0, eps, False)


def activated(x: Tensor, slope: float) -> Tensor:
    """leaky_relu in place, which nobody else may read."""
    if slope == 1:
        return x
    return x.relu_() if slope == 0 else F.leaky_relu_(x, slope)


def on_cpu(module: nn.Module) -> bool:
    """Whether its weights are."""
    return next(module.parameters()).device.type == "cpu"


def convolution(conv: nn.Module) -> nn.Module:
    """The fast form of a convolution here, or itself."""
    if isinstance(conv, nn.ConvTranspose2d):
        return transposed(conv)
    if takes(conv):
        assert isinstance(conv, nn.Conv2d)
        return OneDNNConv(conv, prepacked=True)
    return conv


def detached(parameter: Tensor | None) -> Tensor | None:
    """Its values, without gradient."""
    return None if parameter is None else parameter.detach()


class InParts(nn.Module):
    """A network that works, on a CPU, on as many images together as `TOGETHER` says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    WRAPS = "network"

    def forward(self, *given: Tensor | None) -> Tensor:
        """As the network's; arguments are [B, ...] or None."""
        images = next(value for value in given if value is not None)
        count = len(images)
        if images.is_cpu:
            each = self.network.widest(*images.shape[2:]) * images.element_size()  # type: ignore[operator]
            count = max(1, TOGETHER // each)
        if len(images) <= count:
            return self.network(*map(_channels_last, given))
        parts = [
            [None if value is None else value[start : start + count] for value in given]
            for start in range(0, len(images), count)
        ]
        return torch.cat([self.network(*map(_channels_last, part)) for part in parts])


def _channels_last(value: Tensor | None) -> Tensor | None:
    if value is None or value.dim() != 4:
        return value
    return value.contiguous(memory_format=torch.channels_last)


class FusedConvNorm(nn.Module):
    """`ConvNorm` and the activation behind it.

    running: by the statistics of training, which are folded. patches: a discriminator's, by `patch_conv` on a GPU.
    """

    def __init__(self, block: ConvNorm, slope: float, running: bool, patches: bool = False) -> None:
        super().__init__()
        self.conv: nn.Module | None
        self.norm: nn.Module | None
        conv, norm = block.conv, block.norm
        self.slope, self.norm = slope, None
        if isinstance(norm, BatchNorm) and running:
            # Under this name it is judged: it makes what the norm makes.
            self.conv, self.norm = None, self._fast(merged(conv, norm), slope, patches)
            return
        if not isinstance(norm, nn.Identity):
            self.norm, slope, self.slope = FusedNormed(norm, slope), 1.0, 1.0  # type: ignore[arg-type]
        self.conv = self._fast(conv, slope, patches)

    def _fast(self, conv: nn.Module, slope: float, patches: bool) -> nn.Module:
        if not patches or on_cpu(conv):
            return convolution(conv)
        self.slope = 1.0
        return FusedPatches(conv, slope)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for step in (self.conv, self.norm):
            if step is not None:
                x = step(x)
        return activated(x, self.slope)


class FusedUNetGenerator(nn.Module):
    """`UNetGenerator`, whose inputs to the way up are rectified once, where they lie."""

    def __init__(self, network: UNetGenerator, running: bool) -> None:
        super().__init__()
        self.config, last = network.config, network.config.downs - 1
        self.down = nn.ModuleList(
            FusedConvNorm(block, 0.2 if i < last else 0.0, running)  # type: ignore[arg-type]
            for i, block in enumerate(network.down)
        )
        self.up = nn.ModuleList(
            FusedConvNorm(block, 0.0 if i else 1.0, running)  # type: ignore[arg-type]
            for i, block in enumerate(network.up)
        )

    def widest(self, height: int, width: int) -> int:
        """Elements of the largest tensor on the way, of an image."""
        return max(
            2 * self.config.channels * (height // 2) * (width // 2), self.config.out_channels * height * width
        )

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W], kept: see `UNetGenerator`."""
        masks, skips = Masks(kept), []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        last = self.config.downs - 1
        for i in reversed(range(self.config.downs)):
            # relu(leaky_relu(v)) = relu(v): nobody needs the negative part of a skip any more.
            x = self.up[i](x if i == last else torch.cat([skips[i].relu_(), x], dim=1))
            if kept is not None and self.config.has_dropout(i):
                x = masks(x, False)
        return x.tanh_()


class FusedResNetGenerator(nn.Module):
    """`ResNetGenerator` with activations and sums in place."""

    def __init__(self, network: ResNetGenerator, running: bool) -> None:
        super().__init__()
        self.config, self._larger = network.config, network._larger

        def fused(blocks: Any, slope: float) -> nn.ModuleList:
            return nn.ModuleList(FusedConvNorm(block, slope, running) for block in blocks)

        (self.stem,) = fused([network.stem], 0.0)
        self.down, self.up = fused(network.down, 0.0), fused(network.up, 0.0)
        self.blocks = nn.ModuleList()
        for block in network.blocks:
            made = nn.Module()
            made.conv1 = FusedConvNorm(block.conv1, 0.0, running)  # type: ignore[arg-type]
            made.conv2 = FusedConvNorm(block.conv2, 1.0, running)  # type: ignore[arg-type]
            self.blocks.append(made)
        self.head = convolution(network.head)

    def widest(self, height: int, width: int) -> int:
        """Elements of the largest tensor on the way, of an image."""
        return self.config.channels * height * width

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W], kept: see `ResNetGenerator`."""
        masks = Masks(kept)
        x = self.stem(x)
        for layer in self.down:
            x = layer(x)
        for block in self.blocks:
            hidden = block.conv1(x)  # type: ignore[operator]
            if kept is not None:
                hidden = masks(hidden, False)
            x = block.conv2(hidden).add_(x)  # type: ignore[operator]
        for layer in self.up:
            x = layer(self._larger(x))
        return self.head(x).tanh_()


class Patches(nn.Module):
    """A discriminator's 4x4 convolution, and an activation."""

    def __init__(self, conv: nn.Conv2d, slope: float) -> None:
        super().__init__()
        self.conv, self.slope = conv, slope

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]; leaky_relu(conv(x)), with slope 1 for no activation."""
        return F.leaky_relu(self.conv(x), self.slope)


class FusedPatches(Twin[Patches]):
    """`Patches` by `patch_conv`, with a packed weight."""

    def __init__(self, conv: nn.Conv2d, slope: float) -> None:
        super().__init__(Patches(conv, slope))
        self._weight, self._bias = pack_weight(conv.weight.detach()), detached(conv.bias)
        self._stride, self._slope = conv.stride[0], None if slope == 1 else slope

    def forward(self, x: Tensor) -> Tensor:
        return patch_conv(x, self._weight, self._bias, stride=self._stride, negative_slope=self._slope)


class Score(nn.Module):
    """The last convolution of a discriminator, and the mean over what it makes of an image."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B]."""
        logits: Tensor = self.conv(x)
        return logits.mean((1, 2, 3))


class FusedScore(Twin[Score]):
    """`Score` by `patch_score`, in float32 from half precision too; a 1x1 convolution as a product of means."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(Score(conv))
        self._weight, self._bias = conv.weight.detach(), detached(conv.bias)
        self._pixels = conv.kernel_size == (1, 1)
        if not self._pixels:
            self._weight = pack_weight(self._weight)

    def forward(self, x: Tensor) -> Tensor:
        if not self._pixels:
            return patch_score(x, self._weight, self._bias)
        wide = torch.promote_types(x.dtype, torch.float32)
        score = x.mean((2, 3), dtype=wide) @ self._weight.to(wide).flatten()
        return score if self._bias is None else score + self._bias.to(wide)


class FusedDiscriminator(nn.Module):
    """`PatchDiscriminator` or `PixelDiscriminator`, up to the score of an image: its mean logit."""

    def __init__(self, network: PatchDiscriminator | PixelDiscriminator, running: bool) -> None:
        super().__init__()
        self.config = network.config
        self.layers = nn.ModuleList(
            FusedConvNorm(block, SLOPE, running, isinstance(network, PatchDiscriminator))  # type: ignore[arg-type]
            for block in network.layers
        )
        self.score = FusedScore(network.head)

    def widest(self, height: int, width: int) -> int:
        """Elements of the largest tensor on the way, of an image."""
        pixels = height * width
        return (
            2 * self.config.channels * pixels
            if isinstance(self.config, PixelDiscriminatorConfig)
            else (self.config.channels * pixels // 4)
        )

    def forward(self, *images: Tensor) -> Tensor:
        """x [B, C, H, W] (left out where in_channels is 0) and y -> float32 [B] (float64 of such images)."""
        hidden = images[0] if len(images) == 1 else torch.cat(images, dim=1)
        for layer in self.layers:
            hidden = layer(hidden)
        score: Tensor = self.score(hidden)
        return score


TWINS: dict[type[nn.Module], Callable[[Any, bool], nn.Module]] = {
    UNetGenerator: FusedUNetGenerator,
    ResNetGenerator: FusedResNetGenerator,
    PatchDiscriminator: FusedDiscriminator,
    PixelDiscriminator: FusedDiscriminator,
}


@torch.no_grad()
def fast(network: nn.Module, norm_mode: str) -> nn.Module | None:
    """A module that computes what `network`, of ``fastgen.models.translate``, does at inference in this mode.

    norm_mode: "instance" or "running". Of a generator it takes (x, kept), of a discriminator ([x,] y) and gives scores.
    It holds the values of now where weights are laid out or folded. None for other networks, and where hooks hang.
    """
    if type(network) not in TWINS or any(map(hooked, network.modules())):
        return None
    return InParts(TWINS[type(network)](network, norm_mode == "running"))
