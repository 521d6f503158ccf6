"""Networks inside couplings that see images: (x [B, in, H, W], condition) -> [B, out, H, W].

Each ends in a convolution that starts at zero, so that a new coupling changes nothing but by its map's constant.
condition: labels int64 [B] where the network was built with `classes`, an image [B, context, H, W] where it was built
with `context` channels, which is laid beside x; else it is ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from .layers import ActNorm

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def activation(name: str, slope: float = 0.01) -> nn.Module:
    """slope: of leaky_relu where x < 0."""
    return nn.LeakyReLU(slope) if name == "leaky_relu" else ACTIVATIONS[name]()


class ZeroConv(nn.Module):
    """3x3 convolution that starts at zero, times exp(3 log_scale) for each channel (Glow's code, `conv2d_zeros`).

    x: [B, in, H, W] -> [B, out, H, W]. border: what lies around the image; rosinality's code has 1 there. log_scale:
    [out], or None where there is no such factor.
    """

    def __init__(self, inputs: int, outputs: int, border: float = 0.0, scaled: bool = True) -> None:
        super().__init__()
        self.border = border
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=0 if border else 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.log_scale = nn.Parameter(torch.zeros(outputs)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        if self.border:
            x = F.pad(x, (1, 1, 1, 1), value=self.border)
        x = self.conv(x)
        return x if self.log_scale is None else x * torch.exp(3 * self.log_scale)[:, None, None]


class ChannelAffine(ActNorm):
    """An ActNorm within a network, where no inverse is wanted: x [B, C, H, W] -> the same."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class ConvNet(nn.Module):
    """3x3, 1x1, 3x3 convolutions with activations between (Kingma & Dhariwal 2018, section 4).

    hidden: channels of the two inner layers. actnorm: an ActNorm after each inner convolution, which then has no bias.
    border, scaled: of the last convolution, see `ZeroConv`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        act: str = "relu",
        slope: float = 0.01,
        actnorm: bool = False,
        border: float = 0.0,
        scaled: bool = True,
        classes: int | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.condition = Condition(hidden, classes, context)
        self.first = nn.Conv2d(inputs + context, hidden, 3, padding=1, bias=not actnorm)
        self.inner = nn.Sequential(
            *([ChannelAffine(hidden)] if actnorm else []),
            activation(act, slope),
            nn.Conv2d(hidden, hidden, 1, bias=not actnorm),
            *([ChannelAffine(hidden)] if actnorm else []),
            activation(act, slope),
        )
        self.last = ZeroConv(hidden, outputs, border, scaled)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.first(self.condition.beside(x, condition))
        return self.last(self.inner(self.condition.added(x, condition)))


class WeightNormConv(nn.Module):
    """Convolution whose filters are gain * direction / |direction| (Salimans & Kingma 2016, eq. 2).

    gain: [out]; direction: [out, in, k, k].
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, size)
        self.padding = size // 2
        self.direction = nn.Parameter(conv.weight.detach())
        self.gain = nn.Parameter(torch.empty(outputs))
        if not self.gain.is_meta:
            self.gain.data.copy_(self.direction.detach().flatten(1).norm(dim=1))
        self.bias = nn.Parameter(conv.bias.detach())  # type: ignore[union-attr]

    def weight(self) -> Tensor:
        """The filters, [out, in, k, k]."""
        norm = self.direction.flatten(1).norm(dim=1).clamp_min(1e-12)  # a filter of zeros stays one
        return self.direction * (self.gain / norm)[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, padding=self.padding)


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), 3x3 with weight norm; x: [B, C, H, W]."""

    def __init__(self, channels: int, act: str, slope: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            activation(act, slope),
            WeightNormConv(channels, channels, 3),
            activation(act, slope),
            WeightNormConv(channels, channels, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ResNet(nn.Module):
    """Residual network with weight norm (Dinh et al. 2017, section 3.7); the paper's batch norm is left out."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        blocks: int,
        act: str = "relu",
        slope: float = 0.01,
        classes: int | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.condition = Condition(hidden, classes, context)
        self.first = WeightNormConv(inputs + context, hidden, 3)
        self.blocks = nn.Sequential(
            *(ResidualBlock(hidden, act, slope) for _ in range(blocks)), activation(act, slope)
        )
        self.last = ZeroConv(hidden, outputs, scaled=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.first(self.condition.beside(x, condition))
        return self.last(self.blocks(self.condition.added(x, condition)))


class ConcatELU(nn.Module):
    """[elu(x), elu(-x)]: [B, C, H, W] -> [B, 2C, H, W] (Salimans et al. 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.elu(x), F.elu(-x)], dim=1)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel; x: [B, C, H, W]. weight, bias: [C]."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class GatedBlock(nn.Module):
    """x + value * sigmoid(gate), both from two convolutions, then a layer norm; x: [B, C, H, W].

    (Ho et al. 2019, section 3.3, as the UvA tutorial 11 has it.)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConcatELU(),
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            ConcatELU(),
            nn.Conv2d(2 * channels, 2 * channels, 1),
        )
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.branch(x).chunk(2, dim=1)
        return self.norm(x + value * torch.sigmoid(gate))


class GatedNet(nn.Module):
    """Gated residual network (Ho et al. 2019; the `GatedConvNet` of the UvA tutorial 11)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        blocks: int,
        classes: int | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.condition = Condition(hidden, classes, context)
        self.first = nn.Conv2d(inputs + context, hidden, 3, padding=1)
        self.blocks = nn.Sequential(*(GatedBlock(hidden) for _ in range(blocks)), ConcatELU())
        self.last = ZeroConv(2 * hidden, outputs, scaled=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.first(self.condition.beside(x, condition))
        return self.last(self.blocks(self.condition.added(x, condition)))


class Condition(nn.Module):
    """How a network of convolutions takes its condition: see the head of this file."""

    def __init__(self, hidden: int, classes: int | None, context: int) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(classes, hidden) if classes else None

    def beside(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """x with the context's channels behind its own."""
        if not self.context:
            return x
        if condition is None:
            raise ConfigError(f"expected an image of {self.context} channels, got None", argument="condition")
        return torch.cat([x, condition.to(x.dtype)], dim=1)

    def added(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        """hidden [B, C, H, W] plus the embedding of the labels."""
        if self.embedding is None:
            return hidden
        if condition is None:
            raise ConfigError(
                "expected labels int64 [B], got None: this flow is class-conditional", argument="condition"
            )
        return hidden + self.embedding(condition)[:, :, None, None].to(hidden.dtype)
