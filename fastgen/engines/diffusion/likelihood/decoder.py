"""From the lowest noise level to data: the Gaussian decoder, discretised to levels (Ho et al. 2020, eq. 13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, variance) of each element, float64."""
    x, mean, log_variance = x.double(), mean.double(), log_variance.double()
    return -0.5 * ((x - mean).square() * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi))


def discretised(
    x: Tensor, mean: Tensor, log_variance: Tensor, span: tuple[float, float], levels: int
) -> Tensor:
    """log of the probability that N(mean, variance) gives to each element's level, float64.

    x: levels as values, from span[0] to span[1]. A level has what lies within half the distance to the next ones; the
    outermost two have all that lies beyond them.
    """
    x, mean = x.double(), mean.double()
    half = 0.5 * (span[1] - span[0]) / (levels - 1)
    scale = torch.exp(-0.5 * log_variance.double())
    upper, lower = (x + half - mean) * scale, (x - half - mean) * scale
    upper = torch.where(x > span[1] - half, math.inf, upper)
    lower = torch.where(x < span[0] + half, -math.inf, lower)
    # On the side where both are below 0, where the logarithm of the distribution function is exact.
    flipped = lower > 0
    upper, lower = torch.where(flipped, -lower, upper), torch.where(flipped, -upper, lower)
    high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return high + torch.log(-torch.expm1(low - high))
