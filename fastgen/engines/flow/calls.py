"""What a flow engine captures: functions of tensors [B, ...] to tensors [B, ...], in the engine's units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen_kernels import normals

from ...fused.flow import FusedFlow


class FlowCalls:
    """The verbs of `fused` for one batch. Results are the caller's own; no value is read on the host.

    x: pictures in [-1, 1] where the flow has levels, which it sees as (x + 1) / 2; else as the flow sees it. condition:
    one tensor, labels int64 [B] or a context [B, D_c], or nothing.
    """

    def __init__(self, fused: FusedFlow) -> None:
        self.fused, self.flow = fused, fused.flow
        self.discrete = self.flow.levels is not None

    def sample(self, seeds: Tensor, temperature: Tensor, *condition: Tensor) -> tuple[Tensor, ...]:
        """(x,) of seeds int64 [B] and temperatures [B]; pictures are clipped."""
        shapes = self.flow.latent_shapes
        sizes = [math.prod(shape) for shape in shapes]
        # One range of counters over all latents, the finest scale's first.
        flat = normals(seeds, torch.zeros_like(seeds), "initial", (sum(sizes),)).to(self.fused.dtype)
        noise = [part.view(-1, *shape) for part, shape in zip(flat.split(sizes, 1), shapes, strict=True)]
        warmth = temperature.view(-1, *[1] * len(shapes[0]))
        x = self.outward(self.fused.sample(noise, warmth, *condition))
        return (x.clamp_(-1, 1) if self.discrete else x,)

    def log_prob(self, x: Tensor, *condition: Tensor) -> tuple[Tensor, ...]:
        """(log p(x),), [B]."""
        log_prob = self.fused.log_prob(self.inward(x), *condition)
        if self.discrete:  # a density over [-1, 1] is half as high in every dimension
            log_prob = log_prob - math.log(2) * math.prod(self.flow.data_shape)
        return (log_prob,)

    def elbo(self, k: Tensor, seeds: Tensor, draws: Tensor, *condition: Tensor) -> tuple[Tensor, ...]:
        """(log p(x) - log q(x | k),), [B], of levels k [B, *shape] dequantised to x in [0, 1].

        The noise is that of (seed, draw), int64 [B] each. With D log(levels) subtracted, its expectation is a lower
        bound of log P(k), and the mean of its exponential over many draws tends to P(k) (Burda et al. 2016).
        """
        assert self.flow.dequantiser is not None
        noise = normals(seeds, draws, "dequantise", k.shape[1:]).to(self.fused.dtype)
        x, log_q = self.flow.dequantiser(k, noise)
        return (self.fused.log_prob(x, *condition) - log_q,)

    def encode(self, x: Tensor, *condition: Tensor) -> tuple[Tensor, ...]:
        """The latents, one a scale."""
        return tuple(self.fused.encode(self.inward(x), *condition)[0])

    def decode(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(x,) of latents, one a scale, and a condition behind them."""
        scales = len(self.flow.latent_shapes)
        return (self.outward(self.fused.decode(tensors[:scales], *tensors[scales:])),)

    def inward(self, x: Tensor) -> Tensor:
        """As the flow sees it."""
        return x.add(1).mul_(0.5) if self.discrete else x

    def outward(self, x: Tensor) -> Tensor:
        """In the engine's units, contiguous, from the flow's x, which may be changed."""
        return (x.mul_(2).sub_(1) if self.discrete else x).contiguous()
