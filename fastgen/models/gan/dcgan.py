"""DCGAN (Radford et al. 2016), and the class-conditional GAN made of it (Mirza & Osindero 2014)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...config import bounded, one_of
from ...errors import ConfigError
from .initial import normal, scaled
from .spectral import spectral

SLOPE = 0.2  # of every LeakyReLU
MAX_LAYERS = 12
MAX_SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class DCGANConfig:
    """Options of :class:`DCGAN`; the defaults are the paper's network for 64x64 pixels.

    latent: numbers of z. widths: channels of each layer but the last. kernels, strides, paddings: of all layers, one
    more than there are widths. bias: of the transposed convolutions. num_classes: None for a network without labels;
    embedding: numbers per class, learned, that stand behind z.
    """

    latent: int = bounded(1, 4096, default=100)
    out_channels: int = bounded(1, 64, default=3)
    widths: tuple[int, ...] = bounded(1, 8192, default=(512, 256, 128, 64), max_items=MAX_LAYERS)
    kernels: tuple[int, ...] = bounded(1, 64, default=(4, 4, 4, 4, 4), max_items=MAX_LAYERS + 1)
    strides: tuple[int, ...] = bounded(1, 8, default=(1, 2, 2, 2, 2), max_items=MAX_LAYERS + 1)
    paddings: tuple[int, ...] = bounded(0, 32, default=(0, 1, 1, 1, 1), max_items=MAX_LAYERS + 1)
    bias: bool = False
    num_classes: int | None = bounded(1, 1_000_000, default=None)
    embedding: int = bounded(0, 4096, default=0)

    def __post_init__(self) -> None:
        check_layers(self.widths, self.kernels, self.strides, self.paddings)
        if (self.num_classes is None) != (self.embedding == 0):
            raise ConfigError(
                f"is {self.embedding} with num_classes {self.num_classes}; classes need numbers, numbers need classes",
                argument="embedding",
            )
        if not 1 <= self.side <= MAX_SIDE:
            raise ConfigError(
                f"images would be {self.side} pixels wide", argument="kernels, strides, paddings"
            )

    @property
    def side(self) -> int:
        """Height and width of the images; at most `MAX_SIDE`, at least 1 on the way."""
        side = 1
        for kernel, stride, padding in zip(self.kernels, self.strides, self.paddings, strict=True):
            side = (side - 1) * stride - 2 * padding + kernel
            if not 1 <= side <= MAX_SIDE:
                break
        return side

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.out_channels, self.side, self.side


class DCGAN(nn.Module):
    """Images [B, out_channels, H, W] in [-1, 1] of z [B, latent]: transposed convolutions, batch norm, ReLU, tanh."""

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = None
        if config.num_classes is not None:
            self.embedding = nn.Embedding(config.num_classes, config.embedding)
        layers: list[nn.Module] = []
        before, last = config.latent + config.embedding, len(config.widths)
        for i, width in enumerate((*config.widths, config.out_channels)):
            shape = config.kernels[i], config.strides[i], config.paddings[i]
            layers.append(nn.ConvTranspose2d(before, width, *shape, bias=config.bias))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if i < last else [nn.Tanh()]
            before = width
        self.layers = nn.Sequential(*layers)
        normal(self)

    def forward(self, z: Tensor, labels: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """labels: int64 [B], of a network with classes. level: not looked at (see ``residual.ResidualGenerator``)."""
        x: Tensor = self.layers(self.joined(z, labels)[:, :, None, None])
        return x

    def joined(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """[z, embedding of the label], [B, latent + embedding]."""
        if self.embedding is None:
            return z
        return torch.cat([z, self.embedding(labels)], dim=1)


@dataclass(frozen=True, kw_only=True)
class DCGANDiscriminatorConfig:
    """Options of :class:`DCGANDiscriminator`; the defaults are the paper's network for 64x64 pixels.

    size: height and width. widths, kernels, strides, paddings: of the convolutions; with a head "conv" there is one
        more of each but widths, whose output is the logit.
    norm: behind every convolution but the first and the last: "batch"; "layer" or "instance", which leave samples
        independent, as a gradient penalty needs (Gulrajani et al. 2017, section 4); "none".
    head: "conv", a convolution to a single pixel; "pool", a linear layer of the features' sums over all pixels.
    conditioning: how labels come in: "none"; "concat", as planes behind the image that are 1 for the label
        (Mirza & Osindero 2014); "projection": embedding . features is added to the logit, features as of "pool"
        (Miyato & Koyama 2018).
    """

    in_channels: int = bounded(1, 64, default=3)
    size: int = bounded(1, MAX_SIDE, default=64)
    widths: tuple[int, ...] = bounded(1, 8192, default=(64, 128, 256, 512), max_items=MAX_LAYERS)
    kernels: tuple[int, ...] = bounded(1, 64, default=(4, 4, 4, 4, 4), max_items=MAX_LAYERS + 1)
    strides: tuple[int, ...] = bounded(1, 8, default=(2, 2, 2, 2, 1), max_items=MAX_LAYERS + 1)
    paddings: tuple[int, ...] = bounded(0, 32, default=(1, 1, 1, 1, 0), max_items=MAX_LAYERS + 1)
    bias: bool = False
    norm: str = one_of("batch", "layer", "instance", "none", default="batch")
    spectral_norm: bool = False
    head: str = one_of("conv", "pool", default="conv")
    num_classes: int | None = bounded(1, 10_000, default=None)
    conditioning: str = one_of("none", "concat", "projection", default="none")

    def __post_init__(self) -> None:
        check_layers(self.widths, self.kernels, self.strides, self.paddings, self.head == "conv")
        if (self.num_classes is None) != (self.conditioning == "none"):
            raise ConfigError(
                f"is {self.conditioning} with num_classes {self.num_classes}", argument="conditioning"
            )
        side = self.size
        for kernel, stride, padding in zip(self.kernels, self.strides, self.paddings, strict=True):
            side = (side + 2 * padding - kernel) // stride + 1
            if side < 1:
                raise ConfigError(
                    f"images of {self.size} pixels are too small for the layers", argument="size"
                )
        if self.head == "conv" and side != 1:
            raise ConfigError(
                f"the last convolution leaves {side}x{side} pixels, not one; take head pool", argument="head"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.in_channels, self.size, self.size


class DCGANDiscriminator(nn.Module):
    """Logits [B] of images [B, in_channels, H, W] in [-1, 1]: strided convolutions, norm, leaky ReLU."""

    def __init__(self, config: DCGANDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        planes = config.num_classes if config.conditioning == "concat" else 0
        layers: list[nn.Module] = []
        before = config.in_channels + (planes or 0)
        for i, width in enumerate(config.widths):
            normed = config.norm if i else "none"
            shape = config.kernels[i], config.strides[i], config.paddings[i]
            layers.append(nn.Conv2d(before, width, *shape, bias=config.bias))
            layers += [*_norm(normed, width), nn.LeakyReLU(SLOPE)]
            before = width
        self.layers = nn.Sequential(*layers)
        if config.head == "conv":
            shape = config.kernels[-1], config.strides[-1], config.paddings[-1]
            self.head: nn.Module = nn.Conv2d(before, 1, *shape, bias=config.bias)
        else:
            self.head = nn.Linear(before, 1)
        self.embedding = None
        if config.conditioning == "projection":
            assert config.num_classes is not None
            self.embedding = nn.Embedding(config.num_classes, before)
        if config.norm == "none" and not config.spectral_norm:
            scaled(self, SLOPE)
        else:
            normal(self)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, 0.0, 0.02)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
                spectral(module, config.spectral_norm)

    @property
    def joint(self) -> bool:
        """Whether real and generated images may stand in one batch: not where a batch norm would mix them."""
        return self.config.norm != "batch"

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels: int64 [B], of a network with classes."""
        config = self.config
        if config.conditioning == "concat":
            x = torch.cat([x, planes_of(x, labels, config.num_classes)], dim=1)
        hidden = self.layers(x)
        pooled = hidden.sum((2, 3)) if config.head == "pool" or self.embedding is not None else None
        logits: Tensor = self.head(hidden if config.head == "conv" else pooled).flatten(0)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * pooled).sum(1)
        return logits


def planes_of(x: Tensor, labels: Tensor | None, classes: int | None) -> Tensor:
    """[B, classes, H, W]: 1 in the plane of each image's label."""
    assert labels is not None
    assert classes is not None
    number = torch.arange(classes, device=x.device)
    return (labels[:, None] == number)[:, :, None, None].to(x.dtype).expand(-1, -1, *x.shape[2:])


def check_layers(
    widths: tuple[int, ...],
    kernels: tuple[int, ...],
    strides: tuple[int, ...],
    paddings: tuple[int, ...],
    last: bool = True,
) -> None:
    """ConfigError unless there is a kernel, stride and padding for each width and, if `last`, one more."""
    count = len(widths) + last
    if not widths:
        raise ConfigError("expected at least 1", argument="widths")
    for name, values in (("kernels", kernels), ("strides", strides), ("paddings", paddings)):
        if len(values) != count:
            raise ConfigError(f"expected {count}, got {len(values)}", argument=name)


def _norm(kind: str, channels: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    if kind == "layer":  # over channels and pixels
        return [nn.GroupNorm(1, channels)]
    return [nn.InstanceNorm2d(channels, affine=True)] if kind == "instance" else []
