"""The discriminators of StyleGAN, without progressive growing, and of StyleGAN2, with residual blocks.

Both look at how much the images of a batch differ, so that the logit of an image depends on those beside it: they are
a part of training alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....config import bounded
from ....errors import ConfigError
from .layers import EPS, SLOPE, EqualizedConv, EqualizedLinear, blur, downsampled, unit_rms, upfirdn
from .mapping import MAX_SIDE, MAX_TAPS, MAX_WIDTHS


@dataclass(frozen=True, kw_only=True)
class StyleGANDiscriminatorConfig:
    """Options of both discriminators; the defaults are the papers' for 1024x1024 pixels.

    size: height and width of the images. widths: channels by resolution, the finest first; each resolution has half
        the side of the one before (28 pixels: 28, 14, 7 with three widths).
    blur: taps of the filter in front of each halving; none: no filter.
    group: how many images the deviation is taken of; a batch is a multiple of it, or smaller.
    num_classes: None for images without labels; else the logit is the product of the image's features and a vector of
        its label, which `mapping_layers` layers of learning rate `mapping_lr` make (Karras et al. 2020a, their code).
    """

    in_channels: int = bounded(1, 64, default=3)
    size: int = bounded(1, MAX_SIDE, default=1024)
    widths: tuple[int, ...] = bounded(
        1, 8192, default=(16, 32, 64, 128, 256, 512, 512, 512, 512), max_items=MAX_WIDTHS
    )
    blur: tuple[int, ...] = bounded(1, 1_000_000, default=(1, 2, 1), max_items=MAX_TAPS)
    group: int = bounded(1, 65536, default=4)
    num_classes: int | None = bounded(1, 10_000, default=None)
    mapping_layers: int = bounded(1, 16, default=8)
    mapping_lr: float = bounded(1e-6, 100.0, default=0.01)

    def __post_init__(self) -> None:
        if not self.widths:
            raise ConfigError("expected at least one", argument="widths")
        if self.size % (1 << (len(self.widths) - 1)):
            raise ConfigError(
                f"is {self.size} with {len(self.widths)} widths; expected a multiple of "
                f"{1 << (len(self.widths) - 1)}",
                argument="size",
            )

    @property
    def bottom(self) -> int:
        """Height and width of the coarsest resolution."""
        return self.size >> (len(self.widths) - 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.in_channels, self.size, self.size


@dataclass(frozen=True, kw_only=True)
class StyleGAN2DiscriminatorConfig(StyleGANDiscriminatorConfig):
    """See :class:`StyleGANDiscriminatorConfig`."""

    widths: tuple[int, ...] = bounded(
        1, 8192, default=(32, 64, 128, 256, 512, 512, 512, 512, 512), max_items=MAX_WIDTHS
    )
    blur: tuple[int, ...] = bounded(1, 1_000_000, default=(1, 3, 3, 1), max_items=MAX_TAPS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blur:
            raise ConfigError("expected at least one tap", argument="blur")


class Block(nn.Module):
    """StyleGAN's: a convolution, the filter, a convolution whose outputs are averaged over 2x2 pixels.

    x: [B, before, H, W], H and W even -> [B, after, H / 2, W / 2].
    """

    def __init__(self, before: int, after: int, config: StyleGANDiscriminatorConfig) -> None:
        super().__init__()
        self.taps = config.blur
        self.conv1 = EqualizedConv(before, before, 3, gain=math.sqrt(2))
        self.conv2 = EqualizedConv(before, after, 3, gain=math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        x = blur(F.leaky_relu(self.conv1(x), SLOPE), self.taps)
        return F.leaky_relu(averaged_conv(x, *self.conv2.effective()), SLOPE)


class ResidualBlock(nn.Module):
    """StyleGAN2's: two convolutions, of which the second halves the sides, and a shortcut (2020, figure 7).

    x: [B, before, H, W], H and W even -> [B, after, H / 2, W / 2].
    """

    def __init__(self, before: int, after: int, config: StyleGANDiscriminatorConfig) -> None:
        super().__init__()
        self.taps = config.blur
        count = len(config.blur)
        self.padding = (count + 1) // 2, count // 2  # both the filter's and the convolution's
        self.conv1 = EqualizedConv(before, before, 3)
        self.conv2 = EqualizedConv(before, after, 3, stride=2, padding=0)
        self.shortcut = EqualizedConv(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = upfirdn(activated(self.conv1(x)), self.taps, padding=self.padding)
        return (activated(self.conv2(hidden)) + self.shortcut(downsampled(x, self.taps))) / math.sqrt(2)


class StyleGANDiscriminator(nn.Module):
    """Logits [B] of images [B, in_channels, H, W] in [-1, 1]: the network of Karras et al. 2018 and 2019."""

    # Real and generated images stand in batches of their own: a batch's deviation is what it looks at.
    joint = False
    block: type[nn.Module] = Block
    # Of an activation's input, in the weights; StyleGAN2 multiplies the activation, bias and all.
    gain = math.sqrt(2)

    def __init__(self, config: StyleGANDiscriminatorConfig) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        width = widths[-1]
        self.from_rgb = EqualizedConv(config.in_channels, widths[0], 1, gain=self.gain)
        self.blocks = nn.Sequential(*(self.block(a, b, config) for a, b in itertools.pairwise(widths)))
        self.conv = EqualizedConv(width + 1, width, 3, gain=self.gain)
        self.dense = EqualizedLinear(width * config.bottom**2, width, gain=self.gain)
        self.labels = None if config.num_classes is None else LabelMapping(config, width)
        self.head = EqualizedLinear(width, 1 if self.labels is None else width)

    def activate(self, x: Tensor) -> Tensor:
        """LeakyReLU."""
        return F.leaky_relu(x, SLOPE)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels: int64 [B], of a network with classes."""
        x = self.blocks(self.activate(self.from_rgb(x)))
        x = self.activate(self.conv(with_deviation(x, self.config.group)))
        # contiguous: of channels-last features the dense layer's weights would stand in another order
        features = self.head(self.activate(self.dense(x.contiguous().flatten(1))))
        if self.labels is None:
            logits: Tensor = features[:, 0]
            return logits
        assert labels is not None
        return (features * self.labels(labels)).sum(1) / math.sqrt(features.shape[1])


class StyleGAN2Discriminator(StyleGANDiscriminator):
    """Logits [B] of images [B, in_channels, H, W] in [-1, 1] (Karras et al. 2020, section 4.1)."""

    block = ResidualBlock
    gain = 1.0

    def activate(self, x: Tensor) -> Tensor:
        """sqrt(2) LeakyReLU."""
        return activated(x)


class LabelMapping(nn.Module):
    """A vector [B, width] for each label, int64 [B]: its embedding at unit root mean square, then linear layers."""

    def __init__(self, config: StyleGANDiscriminatorConfig, width: int) -> None:
        super().__init__()
        assert config.num_classes is not None
        self.embedding = EqualizedLinear(config.num_classes, width)
        self.layers = nn.ModuleList(
            EqualizedLinear(width, width, lr_multiplier=config.mapping_lr)
            for _ in range(config.mapping_layers)
        )

    def forward(self, labels: Tensor) -> Tensor:
        weight, bias = self.embedding.effective()
        assert bias is not None
        x = unit_rms(F.embedding(labels, weight.t()) + bias)
        for layer in self.layers:
            x = activated(layer(x))
        return x


def activated(x: Tensor) -> Tensor:
    """sqrt(2) LeakyReLU(x), which keeps the mean square of normal inputs close to what it was."""
    return F.leaky_relu(x, SLOPE) * math.sqrt(2)


def averaged_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of 3x3 pixels with padding 1, then the mean over 2x2: one convolution of 4x4 pixels at stride 2.

    x: [B, I, H, W], H and W even; weight: [O, I, 3, 3] -> [B, O, H / 2, W / 2]. Less than half the multiplications.
    """
    wide = F.pad(weight, (1, 1, 1, 1))
    mean = (wide[..., 1:, 1:] + wide[..., :-1, 1:] + wide[..., 1:, :-1] + wide[..., :-1, :-1]) / 4
    return F.conv2d(x, mean, bias, stride=2, padding=1)


def with_deviation(x: Tensor, group: int) -> Tensor:
    """x [B, C, H, W] with a plane more, [B, C + 1, H, W]: how much the images of a group differ.

    In groups of `group` images, of a batch that is smaller all of it: the standard deviation of each feature over the
    group, sqrt(variance + 1e-8), averaged over all features (Karras et al. 2018, section 3). Group i of n has the
    images i, n + i, 2 n + i, ..., as in the published code. Raises ConfigError where B is no multiple of the group.
    """
    size = min(group, len(x))
    if len(x) % size:
        raise ConfigError(f"{len(x)} images are not groups of {size}", argument="group")
    grouped = x.float().unflatten(0, (size, -1))
    variance = (grouped - grouped.mean(0)).square().mean(0)
    deviation = torch.sqrt(variance + EPS).mean((1, 2, 3))
    plane = deviation.to(x.dtype).repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, plane], dim=1)
