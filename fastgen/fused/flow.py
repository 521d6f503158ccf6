"""The fused twin of a `Flow`: the same parameters, its layers compiled into chains of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.flow.flow import Flow
from ..models.flow.priors import Prior
from .chain import Chain


class FusedFlow:
    """Both directions of `flow`, whose modules are on `device`, their latents' priors in `dtype` or float32.

    dtype: of the state and of log-determinants, float32 or float64. The networks inside couplings may be in another.
    What is folded holds the parameters' values of now: where they change, make another. Layers that are not folded, and
    the priors, run as they are. Raises CheckpointError, naming the layer, where one cannot be inverted.

    Nothing here reads a tensor's value on the host, so that a call can be captured.
    """

    def __init__(self, flow: Flow, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.flow, self.device, self.dtype = flow, device, dtype
        # Preprocessing and the first scale are one chain: an affine layer at the seam is folded too.
        groups = [[*flow.preprocess, *flow.scales[0]], *flow.scales[1:]]  # type: ignore[misc]
        self.chains: list[Chain] = []
        shape = flow.data_shape
        for layers in groups:
            self.chains.append(Chain(layers, shape, device, dtype))
            shape = self.chains[-1].out_shape
            shape = ((shape[0] + 1) // 2, *shape[1:])  # what goes on, but after the last
        self.log_det = math.fsum(chain.log_det for chain in self.chains)

    @property
    def priors(self) -> list[Prior]:
        return list(self.flow.priors)  # type: ignore[arg-type]

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """The latents of x [B, *data_shape], contiguous, and log |det d latents / d x|, [B]."""
        latents, _, log_det = self._analyse(x, condition)
        return [latent.contiguous() for latent in latents], log_det

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(x) in nats, [B]; -inf where there is no density."""
        x, empty = self.flow.supported(x.to(self.dtype))
        latents, kept, log_det = self._analyse(x, condition)
        for prior, latent, rest in zip(self.priors, latents, kept, strict=True):
            log_det += prior.log_prob(latent, rest, condition)
        return log_det if empty is None else log_det.masked_fill_(empty, -math.inf)

    def decode(self, latents: Sequence[Tensor], condition: Tensor | None = None) -> Tensor:
        """x [B, *data_shape] of latents, which are not changed."""
        return self._synthesise(lambda i, kept: latents[i].to(self.dtype), condition)

    def sample(
        self, noise: Sequence[Tensor], temperature: float | Tensor = 1.0, condition: Tensor | None = None
    ) -> Tensor:
        """x from standard normal noise, one [B, *latent_shape] a scale."""

        def latent(i: int, kept: Tensor | None) -> Tensor:
            return self.priors[i].draw(noise[i].to(self.dtype), temperature, kept, condition)

        return self._synthesise(latent, condition)

    def _analyse(
        self, x: Tensor, condition: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        """Latents, what went on after each scale (None after the last), log-determinant."""
        x = _state(x, x.shape, self.dtype)
        log_det = torch.full((x.shape[0],), self.log_det, dtype=self.dtype, device=self.device)
        latents: list[Tensor] = []
        kept: list[Tensor | None] = []
        last = len(self.chains) - 1
        for i, chain in enumerate(self.chains):
            x = chain.forward(x, condition, log_det)
            if i < last:
                rest, latent = self.flow.split(x)
                # The next chain works in place, and a prior may look at what it began with.
                x = rest.clone() if self.priors[i].needs_kept else rest
            else:
                rest, latent = None, x
            latents.append(latent)
            kept.append(rest)
        return latents, kept, log_det

    def _synthesise(self, latent: Callable[[int, Tensor | None], Tensor], condition: Tensor | None) -> Tensor:
        x: Tensor | None = None
        for i in reversed(range(len(self.chains))):
            z = latent(i, x)
            if x is None:
                x = _state(z, z.shape, self.dtype)
            else:
                whole = _empty((len(z), x.shape[1] + z.shape[1], *z.shape[2:]), z)
                torch.cat([x, z], dim=1, out=whole)
                x = whole
            x = self.chains[i].inverse(x, condition, None)
        assert x is not None
        return x


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised; images are channels-last, as convolutions like it."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def _state(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A copy of x to work in."""
    return _empty(shape, x, dtype).copy_(x)
