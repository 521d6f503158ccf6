"""From levels to real numbers and back: uniform and variational dequantisation.

Noise is an argument: standard normal numbers, one for each element.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .layers import Layer
from .priors import logistic


class Dequantiser(nn.Module):
    """Uniform dequantisation: x = (level + u) / levels, u uniform in [0, 1) (Theis et al. 2016, section 3.1).

    A flow's density p of x bounds the probability of the levels k, [B, *shape] with D elements each:
    log P(k) >= E_u[log p(x) - log_q] - D log(levels), and the mean of exp over many u makes it exact.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, k: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x in [0, 1] and log_q = log q(u | k), [B], typed as noise.

        k: integers 0 .. levels - 1, of any type. noise: standard normal, float32 or float64, shaped like k.
        """
        u, log_q = self.offsets(k, noise)
        return (k.to(noise.dtype) + u) / self.levels, log_q

    def offsets(self, k: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """u in [0, 1] and log q(u | k), [B]."""
        return torch.special.ndtr(noise), noise.new_zeros(noise.shape[0])

    def quantise(self, x: Tensor) -> Tensor:
        """The levels of x, int64: floor(levels x), at the ends of [0, 1] and beyond the first and last level."""
        return (x * self.levels).floor().clamp(0, self.levels - 1).long()


class VariationalDequantiser(Dequantiser):
    """u comes from a flow of its own that sees the levels (Ho et al. 2019, section 3.1).

    layers: they take the noise, and as condition the levels scaled to [-1, 1], towards u before its sigmoid: `forward`
    of each, first to last. base: "normal" noise, or "logistic", as the UvA tutorial 11 has it: a sigmoid of it is
    uniform, so that layers which change nothing leave uniform dequantisation.
    """

    def __init__(self, levels: int, layers: Iterable[Layer], base: str = "logistic") -> None:
        super().__init__(levels)
        self.layers = nn.ModuleList(layers)
        self.base = base

    def offsets(self, k: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        image = k.to(noise.dtype) * (2 / (self.levels - 1)) - 1
        if self.base == "logistic":
            v = logistic(noise)
            log_q = _log_slope(v)
        else:
            v = noise
            log_q = (-0.5 * noise.square() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
        for layer in self.layers:
            v, change = layer(v, image)
            log_q = log_q - change
        return torch.sigmoid(v), log_q - _log_slope(v)


def _log_slope(v: Tensor) -> Tensor:
    """Sum of log d sigmoid(v) / dv over a sample, which is also the logistic distribution's log-density."""
    return (nn.functional.logsigmoid(v) + nn.functional.logsigmoid(-v)).flatten(1).sum(1)
