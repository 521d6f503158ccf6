"""What SAGAN and BigGAN are made of: class-conditional batch norm with standing statistics, self-attention, blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spectral import spectral

MOMENTUM = 0.1


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift are of a class, of a class and latents, or learned.

    condition: what `gain` and `shift` are made of: an int, the number of classes, of tables (SAGAN); "shared", of
    linear maps of a vector of `inputs` numbers (BigGAN); None, of parameters. The scale is 1 + gain but for None.
    levels: how many sets of statistics there are, of truncations evenly spaced from 0 to 1; training knows one.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        classes: int | None,
        inputs: int,
        *,
        eps: float,
        levels: int = 1,
        reversed_levels: bool = False,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.reversed_levels = eps, reversed_levels
        self.register_buffer("running_mean", torch.zeros(levels, channels, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(levels, channels, dtype=torch.float32))
        if inputs:
            self.gain: nn.Module | None = spectral(nn.Linear(inputs, channels, bias=False), spectral_norm)
            self.shift: nn.Module | None = spectral(nn.Linear(inputs, channels, bias=False), spectral_norm)
        elif classes is not None:
            self.gain, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        else:
            self.gain = self.shift = None
            self.weight = nn.Parameter(torch.ones(channels, dtype=torch.float32))
            self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))

    def forward(self, x: Tensor, condition: Tensor | None, level: Tensor | None) -> Tensor:
        """x: [B, C, H, W]. condition: labels int64 [B], or a vector [B, inputs]. level: as for `statistics`."""
        if self.training:
            if len(self.running_mean) != 1:
                raise RuntimeError("a norm with statistics of several truncations cannot be trained")
            mean, var = self.running_mean[0], self.running_var[0]
            y = F.batch_norm(x, mean, var, None, None, True, MOMENTUM, self.eps)
            scale, shift = self.affine(condition)
            return y * scale[..., None, None] + shift[..., None, None]
        mean, var = self.statistics(level)
        scale, shift = self.affine(condition)
        y = (x - mean[..., None, None]) / torch.sqrt(var + self.eps)[..., None, None]
        return y * scale[..., None, None] + shift[..., None, None]

    def affine(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift, [B, C] or, where they are learned, [C]."""
        if self.gain is None or self.shift is None:
            return self.weight, self.bias
        return 1 + self.gain(condition), self.shift(condition)

    def statistics(self, level: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance, [B, C], of truncations `level`, float64 [B]; [1, C] where there is one set."""
        return self.at(self.running_mean, level), self.at(self.running_var, level)

    def at(self, known: Tensor, level: Tensor | None) -> Tensor:
        """The rows of `known` [levels, ...] for `level` in [0, 1]; the last one where it is None.

        Between two rows they are interpolated; `reversed_levels`: with the weights the wrong way round, as
        pytorch-pretrained-BigGAN does it.
        """
        last = len(known) - 1
        if last == 0 or level is None:
            return known[last:]
        # That project's own arithmetic, by a tensor: ONNX's exporter would round a number to float32.
        place = level.double() / torch.full((), 1.0 / last, dtype=torch.float64, device=level.device)
        low = place.floor()
        share = (place - low)[:, None]
        if self.reversed_levels:
            share = torch.where(share == 0, share, 1 - share)
        below = low.long().clamp(0, last)
        above = (below + 1).clamp(0, last)
        return (known[below] * (1 - share) + known[above] * share).to(known.dtype)


class SelfAttention(nn.Module):
    """x + gamma * o(attention) of x [B, C, H, W], H and W even (Zhang et al. 2019, section 3).

    As the authors' code has it, and not their text: keys and values are pooled to half the side, and have C / 8 and
    C / 2 channels.
    """

    def __init__(self, channels: int, spectral_norm: bool) -> None:
        super().__init__()

        def pointwise(before: int, after: int) -> nn.Module:
            made: nn.Module = spectral(nn.Conv2d(before, after, 1, bias=False), spectral_norm)
            return made

        self.theta, self.phi = pointwise(channels, channels // 8), pointwise(channels, channels // 8)
        self.g, self.o = pointwise(channels, channels // 2), pointwise(channels // 2, channels)
        self.gamma = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        query = self.theta(x).flatten(2)
        key, value = F.max_pool2d(self.phi(x), 2).flatten(2), F.max_pool2d(self.g(x), 2).flatten(2)
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        found = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(found)


def convolution(before: int, after: int, size: int, spectral_norm: bool) -> nn.Module:
    """A convolution of a filter of `size` pixels that keeps the image's size."""
    made: nn.Module = spectral(nn.Conv2d(before, after, size, padding=size // 2), spectral_norm)
    return made


def doubled(x: Tensor) -> Tensor:
    """Each pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class GeneratorBlock(nn.Module):
    """The residual block of SAGAN and BigGAN (Brock et al. 2019, figure 15 b), which doubles the image's sides."""

    def __init__(self, before: int, after: int, norms: list[nn.Module], spectral_norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.conv1 = convolution(before, after, 3, spectral_norm)
        self.conv2 = convolution(after, after, 3, spectral_norm)
        self.shortcut = convolution(before, after, 1, spectral_norm)

    def forward(self, x: Tensor, condition: Tensor | None, level: Tensor | None) -> Tensor:
        hidden = self.conv1(doubled(F.relu(self.norm1(x, condition, level))))
        hidden = self.conv2(F.relu(self.norm2(hidden, condition, level)))
        return hidden + self.shortcut(doubled(x))


class DeepGeneratorBlock(nn.Module):
    """The block of BigGAN-deep (Brock et al. 2019, figure 16 b): a bottleneck, and a shortcut without weights.

    up: whether the image's sides are doubled. The shortcut drops the channels that are too many.
    """

    def __init__(
        self, before: int, after: int, up: bool, norms: list[nn.Module], spectral_norm: bool
    ) -> None:
        super().__init__()
        self.after, self.up, middle = after, up, before // 4
        self.norm1, self.norm2, self.norm3, self.norm4 = norms
        self.conv1 = convolution(before, middle, 1, spectral_norm)
        self.conv2 = convolution(middle, middle, 3, spectral_norm)
        self.conv3 = convolution(middle, middle, 3, spectral_norm)
        self.conv4 = convolution(middle, after, 1, spectral_norm)

    def forward(self, x: Tensor, condition: Tensor | None, level: Tensor | None) -> Tensor:
        hidden = self.conv1(F.relu(self.norm1(x, condition, level)))
        hidden = F.relu(self.norm2(hidden, condition, level))
        x = x[:, : self.after]
        if self.up:
            hidden, x = doubled(hidden), doubled(x)
        hidden = self.conv3(F.relu(self.norm3(self.conv2(hidden), condition, level)))
        return self.conv4(F.relu(self.norm4(hidden, condition, level))) + x


class DiscriminatorBlock(nn.Module):
    """The residual block of SAGAN's and BigGAN's discriminators (figure 15 c). down: whether sides are halved.

    first: of the image itself, which no ReLU stands before; its shortcut is pooled before it is mapped.
    """

    def __init__(self, before: int, after: int, down: bool, first: bool, spectral_norm: bool) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = convolution(before, after, 3, spectral_norm)
        self.conv2 = convolution(after, after, 3, spectral_norm)
        mapped = before != after or down
        self.shortcut = convolution(before, after, 1, spectral_norm) if mapped else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.down:
            return hidden + self.shortcut(x)
        beside = self.shortcut(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.shortcut(x), 2)
        return F.avg_pool2d(hidden, 2) + beside


class DeepDiscriminatorBlock(nn.Module):
    """The block of BigGAN-deep's discriminator (figure 16 c); channels that are missing are mapped and joined."""

    def __init__(self, before: int, after: int, down: bool, spectral_norm: bool) -> None:
        super().__init__()
        self.down, middle = down, after // 4
        self.conv1 = convolution(before, middle, 1, spectral_norm)
        self.conv2 = convolution(middle, middle, 3, spectral_norm)
        self.conv3 = convolution(middle, middle, 3, spectral_norm)
        self.conv4 = convolution(middle, after, 1, spectral_norm)
        self.shortcut = convolution(before, after - before, 1, spectral_norm) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(F.relu(self.conv1(F.relu(x))))
        hidden = F.relu(self.conv3(F.relu(hidden)))
        if self.down:
            hidden, x = F.avg_pool2d(hidden, 2), F.avg_pool2d(x, 2)
        if self.shortcut is not None:
            x = torch.cat([x, self.shortcut(x)], dim=1)
        return self.conv4(hidden) + x
