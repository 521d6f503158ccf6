"""The verbs of a flow engine, in the engine's units: what they run on, and the reference flow in their place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgen_kernels import normals, signed_seeds

from ...images import PICTURES, within
from ...models.flow.flow import Flow
from ..arguments import sample_seeds
from ..verb import Tensors, Verb

if TYPE_CHECKING:
    from .engine import FlowEngine


class FlowVerbs:
    """Functions of tensors [B, ...] for `engine`'s flow. Results are the caller's own; no value is read on the host.

    x: images in [-1, 1] where the flow has levels, which it sees as (x + 1) / 2; else as the flow sees it. condition:
    one tensor, labels int64 [B] or a context [B, D_c], or nothing.
    """

    def __init__(self, engine: FlowEngine) -> None:
        self.engine, self.fused, self.flow = engine, engine.fused, engine.flow
        self.discrete = self.flow.levels is not None
        self.scales = len(self.flow.latent_shapes)

    def verbs(self) -> dict[str, Verb]:
        """All of them by name; "bits_per_dim" only where the flow models levels."""
        condition = self.condition_name
        latents = tuple(f"latents {i}" for i in range(self.scales))
        made = [
            Verb("log_prob", ("x", *condition), ("log_prob",), self.log_prob, self._log_prob, self.trial_x),
            Verb("encode", ("x", *condition), latents, self.encode, self._encode, self.trial_x),
            Verb("decode", (*latents, *condition), ("x",), self.decode, self._decode, self._trial_latents),
            Verb(
                "sample",
                ("seeds", "temperature", *condition),
                ("x",),
                self.sample,
                self._sample,
                self._trial_seeds,
                self._initial_noise,
            ),
        ]
        if self.discrete:
            made.append(
                Verb(
                    "bits_per_dim",
                    ("levels", "seeds", "draws", *condition),
                    ("elbo",),
                    self.elbo,
                    self._elbo,
                    self._trial_levels,
                    self._dequantisation_noise,
                )
            )
        return {verb.name: verb for verb in made}

    @property
    def condition_name(self) -> tuple[str, ...]:
        if self.flow.classes is not None:
            return ("labels",)
        return ("context",) if self.flow.context else ()

    # Fast.

    def sample(self, seeds: Tensor, temperature: Tensor, *condition: Tensor) -> Tensors:
        """(x,) of seeds int64 [B] and temperatures [B]; images are clipped."""
        noise = self._initial_noise(seeds).to(self.fused.dtype)
        x = self.fused.sample(self._by_scale(noise), self._spread(temperature), *condition)
        x = self._outward(x)
        return (within(x, PICTURES if self.discrete else None),)

    def log_prob(self, x: Tensor, *condition: Tensor) -> Tensors:
        """(log p(x),), [B]."""
        log_prob = self.fused.log_prob(self.inward(x), *condition)
        return (log_prob - self._halved if self.discrete else log_prob,)

    def elbo(self, k: Tensor, seeds: Tensor, draws: Tensor, *condition: Tensor) -> Tensors:
        """(log p(x) - log q(x | k),), [B], of levels k [B, *shape] dequantised to x in [0, 1].

        The noise is that of (seed, draw), int64 [B] each. With D log(levels) subtracted, its expectation is a lower
        bound of log P(k), and the mean of its exponential over many draws tends to P(k) (Burda et al. 2016).
        """
        assert self.flow.dequantiser is not None
        noise = self._dequantisation_noise(k, seeds, draws).to(self.fused.dtype)
        x, log_q = self.flow.dequantiser(k, noise)
        return (self.fused.log_prob(x, *condition) - log_q,)

    def encode(self, x: Tensor, *condition: Tensor) -> Tensors:
        """The latents, one per scale."""
        return tuple(self.fused.encode(self.inward(x), *condition)[0])

    def decode(self, *tensors: Tensor) -> Tensors:
        """(x,) of latents, one per scale, and a condition after them."""
        return (self._outward(self.fused.decode(tensors[: self.scales], *tensors[self.scales :])),)

    def inward(self, x: Tensor) -> Tensor:
        """x as the flow sees it."""
        return x.add(1).mul_(0.5) if self.discrete else x

    # Reference.

    def _sample(
        self, networks: nn.ModuleDict, seeds: Tensor, temperature: Tensor, *condition: Tensor, noise: Tensor
    ) -> Tensors:
        flow = _only(networks)
        x = flow.sample(self._by_scale(noise.to(temperature.dtype)), self._spread(temperature), *condition)
        return (within(2 * x - 1, PICTURES) if self.discrete else x,)

    def _log_prob(self, networks: nn.ModuleDict, x: Tensor, *condition: Tensor) -> Tensors:
        return (_only(networks).log_prob((x + 1) / 2 if self.discrete else x, *condition) - self._halved,)

    def _elbo(
        self,
        networks: nn.ModuleDict,
        k: Tensor,
        seeds: Tensor,
        draws: Tensor,
        *condition: Tensor,
        noise: Tensor,
    ) -> Tensors:
        flow = _only(networks)
        assert flow.dequantiser is not None
        x, log_q = flow.dequantiser(k, noise)
        return (flow.log_prob(x, *condition) - log_q,)

    def _encode(self, networks: nn.ModuleDict, x: Tensor, *condition: Tensor) -> Tensors:
        return tuple(_only(networks)((x + 1) / 2 if self.discrete else x, *condition)[0])

    def _decode(self, networks: nn.ModuleDict, *tensors: Tensor) -> Tensors:
        x, _ = _only(networks).inverse(tensors[: self.scales], *tensors[self.scales :])
        return (2 * x - 1 if self.discrete else x,)

    # Random trials.

    def _trial_seeds(self, batch: int, generator: torch.Generator) -> Tensors:
        engine, flow = self.engine, self.flow
        seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
        seeds = signed_seeds(sample_seeds(batch, seed, None)).to(engine.device)
        temperature = torch.full(
            (batch,), engine.settings.temperature, device=engine.device, dtype=engine.state_dtype
        )
        if flow.classes is not None:
            return (
                seeds,
                temperature,
                torch.randint(flow.classes, (batch,), generator=generator, device="cpu").to(engine.device),
            )
        if flow.context:
            context = torch.randn(batch, flow.context, generator=generator, dtype=torch.float32, device="cpu")
            return seeds, temperature, context.to(engine.device, engine.state_dtype)
        return seeds, temperature

    def trial_x(self, batch: int, generator: torch.Generator) -> Tensors:
        """Samples of the model, and what they are conditioned on."""
        given = self._trial_seeds(batch, generator)
        return (*self.sample(*given), *given[2:])

    def _trial_latents(self, batch: int, generator: torch.Generator) -> Tensors:
        x, *condition = self.trial_x(batch, generator)
        return (*self.encode(x, *condition), *condition)

    def _trial_levels(self, batch: int, generator: torch.Generator) -> Tensors:
        seeds, temperature, *condition = self._trial_seeds(batch, generator)
        (x,) = self.sample(seeds, temperature, *condition)
        assert self.flow.levels is not None
        k = ((x + 1) * ((self.flow.levels - 1) / 2)).round().to(torch.int32)
        return (k, seeds, torch.zeros_like(seeds), *condition)

    # Noise and units.

    def _initial_noise(self, seeds: Tensor, *others: Tensor) -> Tensor:
        """float32 [B, elements]: one range of counters over all latents, the finest scale's first."""
        elements = sum(math.prod(shape) for shape in self.flow.latent_shapes)
        return normals(seeds, torch.zeros_like(seeds), "initial", (elements,))

    def _dequantisation_noise(self, k: Tensor, seeds: Tensor, draws: Tensor, *others: Tensor) -> Tensor:
        """float32 like k."""
        return normals(seeds, draws, "dequantise", k.shape[1:])

    def _by_scale(self, noise: Tensor) -> list[Tensor]:
        shapes = self.flow.latent_shapes
        parts = noise.split([math.prod(shape) for shape in shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _spread(self, temperature: Tensor) -> Tensor:
        return temperature.view(-1, *[1] * len(self.flow.latent_shapes[0]))

    @property
    def _halved(self) -> float:
        """A density over [-1, 1] is half as high in every dimension as over [0, 1]; its logarithm."""
        return math.log(2) * math.prod(self.flow.data_shape) if self.discrete else 0.0

    def _outward(self, x: Tensor) -> Tensor:
        """In the engine's units, contiguous, from the flow's x, which may be changed."""
        return (x.mul_(2).sub_(1) if self.discrete else x).contiguous()


def _only(networks: nn.ModuleDict) -> Flow:
    (flow,) = networks.values()
    assert isinstance(flow, Flow)
    return flow
