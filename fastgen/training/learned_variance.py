"""The variational term that a learned variance is trained by: Nichol & Dhariwal 2021, "Improved Denoising Diffusion
Probabilistic Models" (arXiv:2102.09672), section 3.1.

    log Sigma = v log beta_t + (1 - v) log beta~_t          v = (V + 1) / 2, V the second half of the channels  (eq. 15)
    L_t = KL(q(x_{t-1} | x_t, x_0) || N(mu, Sigma))         t > 0                                               (eq. 6)
    L_0 = -log N(x_0; mu, Sigma), of 8-bit images over the width of a level (Ho et al. 2020, eq. 13)

At t = 0 the posterior's variance is 0, and that of t = 1 takes its place, as in the authors' code. mu comes from an
estimate of x_0 that no gradient flows through.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..diffusion.schedule import NoiseSchedule
from .levels import spread

LEVEL = 2.0 / 255.0  # between two neighbours of 256 values in [-1, 1]


def variational_term(
    schedule: NoiseSchedule, x: Tensor, x0: Tensor, V: Tensor, t: Tensor, *, levels: bool
) -> Tensor:
    """L_t of each sample in bits per dimension, [B], in the type of `x`.

    x: the clean samples x_0 [B, ...]. x0: the network's estimate of them, detached. V: [B, ...], in [-1, 1] once it is
    trained. t: int64 [B], on the CPU. levels: whether x has 256 values in [-1, 1], each of which stands for an
    interval; else L_0 is a density. The noisy sample is not needed: it enters both means alike.
    """
    tables = _tables(schedule)[:, t]
    factor, small, large = (spread(row, x) for row in tables)
    share = (V + 1.0) / 2.0
    log_variance = share * large + (1.0 - share) * small
    error = factor * (x - x0)  # of the mean
    divergence = 0.5 * (log_variance - small - 1.0 + (small - log_variance).exp())
    divergence = divergence + 0.5 * error**2 * (-log_variance).exp()
    if levels:
        likelihood = -_log_interval(x, x0, (0.5 * log_variance).exp())
    else:
        likelihood = 0.5 * (math.log(2.0 * math.pi) + log_variance + (x - x0) ** 2 * (-log_variance).exp())
    first = spread(t == 0, x).bool()
    return torch.where(first, likelihood, divergence).flatten(1).mean(dim=1) / math.log(2.0)


def _tables(schedule: NoiseSchedule) -> Tensor:
    """float64 [3, T]: the posterior mean's factor of x_0 (eq. 10), log beta~_t (at 0 that at 1), log beta_t."""
    bars = schedule.alphas_cumprod
    before = np.concatenate([[1.0], bars[:-1]])
    betas = 1.0 - bars / before
    factor = np.sqrt(before) * betas / (1.0 - bars)
    posterior = betas * (1.0 - before) / (1.0 - bars)
    posterior[0] = posterior[1]
    return torch.from_numpy(np.stack([factor, np.log(posterior), np.log(betas)]))


def _log_interval(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of a normal distribution's mass around x, half a level to both sides; to infinity at -1 and 1."""
    low = torch.where(x < -1.0 + 0.5 * LEVEL, -math.inf, (x - mean - 0.5 * LEVEL) / std)
    high = torch.where(x > 1.0 - 0.5 * LEVEL, math.inf, (x - mean + 0.5 * LEVEL) / std)
    # In the lower tail, where logarithms keep what a difference of probabilities near 1 would lose.
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log(-torch.expm1(lower - upper))
