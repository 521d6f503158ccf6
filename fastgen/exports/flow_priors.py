"""Priors of a flow's latents as modules of standard operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.flow.priors import ConvNormal, DiagonalNormal, Prior, StandardLogistic, StandardNormal
from .accurate import log_sigmoid, logistic
from .flow_layers import simplified


class Latent(nn.Module):
    """A prior: log p(z), and z from standard normal noise; z, noise: [B, *shape]."""

    def log_prob(self, z: Tensor, kept: Tensor | None, condition: Tensor | None) -> Tensor:
        """[B]. kept: what goes on to the next scale."""
        raise NotImplementedError

    def draw(
        self, noise: Tensor, temperature: Tensor, kept: Tensor | None, condition: Tensor | None
    ) -> Tensor:
        """temperature: broadcasts with noise."""
        raise NotImplementedError


class Logistic(Latent):
    """The logistic distribution in every element."""

    def log_prob(self, z: Tensor, kept: Tensor | None, condition: Tensor | None) -> Tensor:
        return (log_sigmoid(z) + log_sigmoid(-z)).flatten(1).sum(1)

    def draw(
        self, noise: Tensor, temperature: Tensor, kept: Tensor | None, condition: Tensor | None
    ) -> Tensor:
        return temperature * logistic(noise)


class Normal(Latent):
    """A normal distribution: standard, of stored moments, a row of them for each label, or of a convolution."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.constant = -0.5 * math.log(2 * math.pi) * math.prod(prior.shape)
        self.moments = _moments(prior)

    def log_prob(self, z: Tensor, kept: Tensor | None, condition: Tensor | None) -> Tensor:
        if self.moments is None:
            return -0.5 * (z * z).flatten(1).sum(1) + self.constant
        mean, log_std = self.moments(kept, condition)
        scaled = (z - mean) * torch.exp(-log_std)
        return -(0.5 * scaled * scaled + log_std).flatten(1).sum(1) + self.constant

    def draw(
        self, noise: Tensor, temperature: Tensor, kept: Tensor | None, condition: Tensor | None
    ) -> Tensor:
        if self.moments is None:
            return temperature * noise
        mean, log_std = self.moments(kept, condition)
        return mean + temperature * torch.exp(log_std) * noise


class Stored(nn.Module):
    """Mean and log standard deviation from a table of one row, or of one for each label."""

    mean: Tensor
    log_std: Tensor

    def __init__(self, mean: Tensor, log_std: Tensor, labelled: bool) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().float())
        self.register_buffer("log_std", log_std.detach().float())
        self.labelled = labelled

    def forward(self, kept: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self.labelled:
            return self.mean, self.log_std
        assert condition is not None
        return self.mean[condition], self.log_std[condition]


class Seen(nn.Module):
    """Mean and log standard deviation from a convolution of what goes on, and a row for each label."""

    said: Tensor | None
    rows: Tensor | None

    def __init__(self, prior: ConvNormal) -> None:
        super().__init__()
        self.conv = simplified(prior.conv).float() if prior.needs_kept else None
        # At the last scale the convolution sees zeros: what it says is the same for every sample.
        zeros = prior.conv.conv.weight.new_zeros(1, *prior.shape)
        self.register_buffer("said", None if prior.needs_kept else prior.conv(zeros).float())
        rows = prior.classes
        self.register_buffer("rows", None if rows is None else rows.detach().float()[:, :, None, None])

    def forward(self, kept: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        moments = self.said
        if self.conv is not None:
            moments = self.conv(kept)
        assert moments is not None
        if self.rows is not None:
            assert condition is not None
            moments = moments + self.rows[condition]
        mean, log_std = moments.chunk(2, dim=1)
        return mean, log_std


def exported(prior: Prior) -> Latent:
    """The module of `prior`. Raises ConfigError for a prior of another kind than the models here have."""
    if type(prior) is StandardLogistic:
        return Logistic()
    if type(prior) in (StandardNormal, DiagonalNormal, ConvNormal):
        return Normal(prior)
    raise ConfigError(
        f"{type(prior).__qualname__} has no export form; StandardNormal, DiagonalNormal, ConvNormal and "
        "StandardLogistic have",
        argument="prior",
    )


@torch.no_grad()
def _moments(prior: Prior) -> nn.Module | None:
    if isinstance(prior, DiagonalNormal):
        return Stored(prior.mean, prior.log_std, prior.classes is not None)
    return Seen(prior) if isinstance(prior, ConvNormal) else None
