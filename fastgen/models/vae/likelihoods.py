"""What a decoder's output says of the data: p(x | z), element by element independent.

    bernoulli   logits of black and white pixels
    gaussian    a mean, and a deviation sigma
    logistic    the logistic distribution of a mean and a scale, as the probabilities of levels (Kingma et al. 2016,
                appendix A.2; at the ends of the range all of the tail, as in Salimans et al. 2017, section 2.1)

sigma, and likewise the logistic's scale, is "fixed", "shared" (one learned number, Rybkin et al. 2021) or "learned" (an
output of the decoder for every element).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("bernoulli", "gaussian", "logistic")
SIGMAS = ("fixed", "shared", "learned")
# Logarithms of a scale are bent towards these smoothly: below them a density of data that lies on a grid has no bound.
LEAST = {"gaussian": -6.0, "logistic": -7.0}


class Likelihood(nn.Module):
    """p(x | z) of x [B, C, ...] in the network's units, images in [0, 1], by the decoder's output [B, outputs C, ...].

    outputs: of the decoder for each element. levels: how many values an element may have; None: any. discrete: whether
    `log_prob` is that of levels (level k is k / (levels - 1)), not of a density.
    """

    outputs: int = 1
    levels: int | None = None
    discrete = False

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) in nats, [B]."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The mean of x: [B, C, ...]."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Of black (0) and white (1) pixels. Of values between, `log_prob` is the negative cross-entropy, no likelihood."""

    levels = 2
    discrete = True

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)


class Scaled(Likelihood):
    """A distribution with a scale. kind: "gaussian" or "logistic"; sigma: one of SIGMAS; value: of a fixed one, and
    what a shared one begins with, in units of x.
    """

    log_sigma: nn.Parameter | None

    def __init__(self, kind: str, sigma: str, value: float) -> None:
        super().__init__()
        self.least = LEAST[kind]
        self.outputs = 2 if sigma == "learned" else 1
        self.fixed = math.log(value)
        self.log_sigma = nn.Parameter(torch.full((), self.fixed)) if sigma == "shared" else None

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The mean, and the logarithm of the scale."""
        if self.outputs == 2:
            output, raw = output.chunk(2, dim=1)
        elif self.log_sigma is not None:
            raw = self.log_sigma.to(output.dtype)
        else:
            return output, output.new_full((), self.fixed)
        return output, self.least + F.softplus(raw - self.least)


class Gaussian(Scaled):
    """The normal distribution: a density, of images over [0, 1]. levels: of images, which are dequantised for it."""

    def __init__(self, sigma: str, value: float, levels: int | None) -> None:
        super().__init__("gaussian", sigma, value)
        self.levels = levels

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        mean, log_sigma = self.split(output)
        squared = ((x - mean) * torch.exp(-log_sigma)).square()
        return (-0.5 * (squared + math.log(2 * math.pi)) - log_sigma).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return self.split(output)[0]


class Logistic(Scaled):
    """The discretised logistic distribution of `levels`; its mean is the logistic's, cut off at the ends."""

    discrete = True

    def __init__(self, sigma: str, value: float, levels: int) -> None:
        super().__init__("logistic", sigma, value)
        self.levels: int = levels

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = self.split(output)
        half, inverse = 0.5 / (self.levels - 1), torch.exp(-log_scale)
        away = x - mean
        above, below = (away + half) * inverse, (away - half) * inverse
        # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)).
        inner = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-2 * half * inverse))
        ends = torch.where(x < half, F.logsigmoid(above), F.logsigmoid(-below))
        return torch.where((x < half) | (x > 1 - half), ends, inner).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return self.split(output)[0].clamp(0, 1)


def likelihood(kind: str, sigma: str, value: float, levels: int | None) -> Likelihood:
    """The likelihood `kind` of data with `levels`, None for data that has none, which only a gaussian models."""
    if kind == "bernoulli":
        return Bernoulli()
    if kind == "gaussian":
        return Gaussian(sigma, value, levels)
    assert levels is not None
    return Logistic(sigma, value, levels)
