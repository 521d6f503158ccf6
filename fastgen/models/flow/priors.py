"""Distributions of the latents, one per scale.

A prior that `needs_kept` looks at the half that goes on to the next scale; the last scale has none (kept is None).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from .layers import Shape
from .networks import ZeroConv


class Prior(nn.Module):
    """A distribution of z [B, *shape]. shape: of one latent."""

    needs_kept = False

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def log_prob(self, z: Tensor, kept: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """log p(z), [B], typed as z."""
        raise NotImplementedError

    def draw(
        self,
        noise: Tensor,
        temperature: float | Tensor = 1.0,
        kept: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """z from standard normal noise [B, *shape]; temperature: a number, or a tensor that broadcasts with z."""
        raise NotImplementedError


class StandardNormal(Prior):
    """N(0, 1) in every element; also the base of priors that have another mean and standard deviation."""

    def moments(
        self, kept: Tensor | None = None, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Mean and log standard deviation, both broadcast with z; None for 0 and 0."""
        return None

    def log_prob(self, z: Tensor, kept: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        moments = self.moments(kept, condition)
        if moments is None:
            terms = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        else:
            mean, log_std = (value.to(z.dtype) for value in moments)
            terms = -0.5 * ((z - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
        return terms.flatten(1).sum(1)

    def draw(
        self,
        noise: Tensor,
        temperature: float | Tensor = 1.0,
        kept: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        moments = self.moments(kept, condition)
        if moments is None:
            return temperature * noise
        mean, log_std = (value.to(noise.dtype) for value in moments)
        return mean + temperature * torch.exp(log_std) * noise


class StandardLogistic(Prior):
    """The logistic distribution in every element (Dinh et al. 2015, section 3.4).

    Noise becomes logistic by its distribution function, computed by logarithms, so that its tails keep their digits.
    """

    def log_prob(self, z: Tensor, kept: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        return (F.logsigmoid(z) + F.logsigmoid(-z)).flatten(1).sum(1)

    def draw(
        self,
        noise: Tensor,
        temperature: float | Tensor = 1.0,
        kept: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        return temperature * logistic(noise)


def logistic(noise: Tensor) -> Tensor:
    """Standard logistic numbers from standard normal ones."""
    return torch.special.log_ndtr(noise) - torch.special.log_ndtr(-noise)


class DiagonalNormal(StandardNormal):
    """Normal with a learned mean and standard deviation, for each element or each channel.

    mean, log_std: [1, *s], s = shape or (C, 1, 1); with classes, [classes, *s], a row a label. All 0 to begin with.
    """

    def __init__(self, shape: Shape, per_channel: bool = False, classes: int | None = None) -> None:
        super().__init__(shape)
        size = (shape[0], *[1] * (len(shape) - 1)) if per_channel else tuple(shape)
        self.classes = classes
        self.mean = nn.Parameter(torch.zeros(classes or 1, *size))
        self.log_std = nn.Parameter(torch.zeros(classes or 1, *size))

    def moments(self, kept: Tensor | None = None, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.classes is None:
            return self.mean, self.log_std
        if condition is None:
            raise ConfigError(
                "expected labels int64 [B], got None: this flow's prior has classes", argument="condition"
            )
        return self.mean[condition], self.log_std[condition]


class ConvNormal(StandardNormal):
    """Normal whose mean and log standard deviation a convolution says, from what goes on to the next scale.

    (Glow's code, `split2d_prior`.) At the last scale the convolution sees zeros [C, H, W]. border: see `ZeroConv`.
    With classes, a row of `classes` [classes, 2C], zero to begin with, is added (Glow's code, `ycond`).
    """

    def __init__(
        self, shape: Shape, kept: int | None, border: float = 0.0, classes: int | None = None
    ) -> None:
        super().__init__(shape)
        self.needs_kept = kept is not None
        self.conv = ZeroConv(kept or shape[0], 2 * shape[0], border)
        self.classes = nn.Parameter(torch.zeros(classes, 2 * shape[0])) if classes else None

    def moments(self, kept: Tensor | None = None, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight = self.conv.conv.weight
        if not self.needs_kept:
            kept = weight.new_zeros(1, *self.shape)
        elif kept is None:
            raise ConfigError(
                "this prior needs the half that goes on to the next scale, got None", argument="kept"
            )
        moments = self.conv(kept.to(weight.dtype))
        if self.classes is not None:
            if condition is None:
                raise ConfigError(
                    "expected labels int64 [B], got None: this flow's prior has classes", argument="condition"
                )
            moments = moments + self.classes[condition][:, :, None, None]
        mean, log_std = moments.chunk(2, dim=1)
        return mean, log_std
