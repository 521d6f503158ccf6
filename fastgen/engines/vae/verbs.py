"""The verbs of a VAE engine, in the engine's units: what they run on, and the reference network in its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgen_kernels import normals, signed_seeds

from ...images import within
from ...models.vae.vae import VAE, Normal
from ..arguments import sample_seeds
from ..verb import Tensors, Verb

if TYPE_CHECKING:
    from .engine import VAEEngine


class VAEVerbs:
    """Functions of tensors [B, ...] for `engine`'s VAE; distributions and x are float32, or float64 of such networks.

    x: images in [-1, 1], or rows in the data's units. temperature: [B, groups]. condition: labels int64 [B], or
    nothing.
    """

    def __init__(self, engine: VAEEngine) -> None:
        self.engine, self.fused, self.vae = engine, engine.fused, engine.vae
        self.groups = self.vae.groups
        self.shapes = self.vae.latent_shapes

    def verbs(self) -> dict[str, Verb]:
        """encode, decode, sample; of VAEs with a likelihood elbo; of several groups pinned."""
        condition = () if self.vae.classes is None else ("labels",)
        latents = tuple(f"latents {i}" for i in range(self.groups))
        moments = tuple(f"{name} {i}" for i in range(self.groups) for name in ("mean", "log_var"))
        made = [
            Verb("encode", ("x", *condition), moments, self.encode, self._encode, self._trial_x),
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
        if self.vae.likelihood is not None:
            made.append(
                Verb(
                    "elbo",
                    ("x", "seeds", "draws", *condition),
                    ("log_likelihood", "log_weight", *(f"kl {i}" for i in range(self.groups))),
                    self.elbo,
                    self._elbo,
                    self._trial_elbo,
                    self._posterior_noise,
                )
            )
        if self.groups > 1:
            made.append(
                Verb(
                    "pinned",
                    ("seeds", "temperature", "pinned", *latents, *condition),
                    ("x",),
                    self.pinned,
                    self._pinned,
                    self._trial_pinned,
                    self._initial_noise,
                )
            )
        return {verb.name: verb for verb in made}

    # Fast.

    def encode(self, x: Tensor, *condition: Tensor) -> Tensors:
        """Mean and log-variance of each group's posterior, those above it being at their means."""
        return self._moments(self.fused, x, condition)

    def decode(self, *tensors: Tensor) -> Tensors:
        """(x,) of latents of every group, and a condition after them: the mean of p(x | z)."""
        return self._decoded(self.fused, tensors)

    def sample(self, seeds: Tensor, temperature: Tensor, *condition: Tensor) -> Tensors:
        """(x,) of seeds int64 [B]; images are clipped."""
        return self._drawn(self.fused, self._initial_noise(seeds), temperature, None, condition)

    def elbo(self, x: Tensor, seeds: Tensor, draws: Tensor, *condition: Tensor) -> Tensors:
        """log p(x | z) [B] in the network's units of x, log p(z) - log q(z | x) [B], and the KL of each latent [B, L].

        z is drawn from q(z | x) by the noise of (seed, draw), int64 [B] each.
        """
        return self._bound(self.fused, x, self._posterior_noise(x, seeds, draws), condition)

    def pinned(self, seeds: Tensor, temperature: Tensor, pinned: Tensor, *tensors: Tensor) -> Tensors:
        """As `sample`; of groups where pinned, bool [B, groups], is set, latents are those that are given."""
        given = pinned, tensors[: self.groups]
        return self._drawn(self.fused, self._initial_noise(seeds), temperature, given, tensors[self.groups :])

    # Reference.

    def _encode(self, networks: nn.ModuleDict, x: Tensor, *condition: Tensor) -> Tensors:
        return self._moments(_only(networks), x, condition)

    def _decode(self, networks: nn.ModuleDict, *tensors: Tensor) -> Tensors:
        return self._decoded(_only(networks), tensors)

    def _sample(
        self, networks: nn.ModuleDict, seeds: Tensor, temperature: Tensor, *condition: Tensor, noise: Tensor
    ) -> Tensors:
        return self._drawn(_only(networks), noise, temperature, None, condition)

    def _elbo(
        self,
        networks: nn.ModuleDict,
        x: Tensor,
        seeds: Tensor,
        draws: Tensor,
        *condition: Tensor,
        noise: Tensor,
    ) -> Tensors:
        return self._bound(_only(networks), x, noise, condition)

    def _pinned(
        self,
        networks: nn.ModuleDict,
        seeds: Tensor,
        temperature: Tensor,
        pinned: Tensor,
        *tensors: Tensor,
        noise: Tensor,
    ) -> Tensors:
        given = pinned, tensors[: self.groups]
        return self._drawn(_only(networks), noise, temperature, given, tensors[self.groups :])

    # Both.

    def _moments(self, vae: VAE, x: Tensor, condition: Sequence[Tensor]) -> Tensors:
        posteriors = vae.encode(self._inward(vae, x), *condition)
        return tuple(value for normal in posteriors for value in normal)

    def _decoded(self, vae: VAE, tensors: Sequence[Tensor]) -> Tensors:
        output = vae.decode(tensors[: self.groups], *tensors[self.groups :])
        return (vae.outward(vae.mean(output)).contiguous(),)

    def _drawn(
        self,
        vae: VAE,
        noise: Tensor,
        temperature: Tensor,
        given: tuple[Tensor, Sequence[Tensor]] | None,
        condition: Sequence[Tensor],
    ) -> Tensors:
        parts = self._by_group(noise)

        def choose(group: int, prior: Normal) -> Tensor:
            spread = (-1, *[1] * (prior.mean.dim() - 1))
            scaled = parts[group].to(prior.mean.dtype) * temperature[:, group].view(spread).to(
                prior.mean.dtype
            )
            z = prior.sample(scaled)
            if given is None:
                return z
            pinned, latents = given
            return torch.where(pinned[:, group].view(spread), latents[group].to(z.dtype), z)

        _, output = vae.generate(len(noise), choose, *condition)
        return (within(vae.outward(vae.mean(output)).contiguous(), self.engine.value_range),)

    def _bound(self, vae: VAE, x: Tensor, noise: Tensor, condition: Sequence[Tensor]) -> Tensors:
        assert vae.likelihood is not None
        x = self._inward(vae, x)
        found = vae.infer(x, self._by_group(noise), *condition)
        log_likelihood = vae.likelihood.log_prob(found.output, x)
        return log_likelihood, found.log_weight(), *(_by_latent(kl) for kl in found.kl())

    def _inward(self, vae: VAE, x: Tensor) -> Tensor:
        x = vae.inward(x)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    # Random trials.

    def _trial_seeds(self, batch: int, generator: torch.Generator) -> Tensors:
        engine = self.engine
        seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
        seeds = signed_seeds(sample_seeds(batch, seed, None)).to(engine.device)
        temperature = torch.ones(batch, self.groups, dtype=engine.state_dtype, device=engine.device)
        if self.vae.classes is None:
            return seeds, temperature
        labels = torch.randint(self.vae.classes, (batch,), generator=generator, device="cpu")
        return seeds, temperature, labels.to(engine.device)

    def _trial_x(self, batch: int, generator: torch.Generator) -> Tensors:
        seeds, temperature, *condition = self._trial_seeds(batch, generator)
        return (*self.sample(seeds, temperature, *condition), *condition)

    def _trial_latents(self, batch: int, generator: torch.Generator) -> Tensors:
        x, *condition = self._trial_x(batch, generator)
        return (*self.encode(x, *condition)[::2], *condition)

    def _trial_elbo(self, batch: int, generator: torch.Generator) -> Tensors:
        seeds, temperature, *condition = self._trial_seeds(batch, generator)
        (x,) = self.sample(seeds, temperature, *condition)
        return x, seeds, torch.zeros_like(seeds), *condition

    def _trial_pinned(self, batch: int, generator: torch.Generator) -> Tensors:
        seeds, temperature, *condition = self._trial_seeds(batch, generator)
        (x,) = self.sample(seeds, temperature, *condition)
        latents = self.encode(x, *condition)[::2]
        pinned = torch.rand(batch, self.groups, generator=generator, dtype=torch.float32, device="cpu") < 0.5
        return seeds, temperature, pinned.to(self.engine.device), *latents, *condition

    # Noise.

    def _initial_noise(self, seeds: Tensor, *others: Tensor) -> Tensor:
        """float32 [B, elements]: one range of counters over the latents of all groups, the top one's first."""
        return self._noise(seeds, torch.zeros_like(seeds))

    def _posterior_noise(self, x: Tensor, seeds: Tensor, draws: Tensor, *others: Tensor) -> Tensor:
        """The same, of each draw."""
        return self._noise(seeds, draws)

    def _noise(self, seeds: Tensor, draws: Tensor) -> Tensor:
        elements = sum(math.prod(shape) for shape in self.shapes)
        return normals(seeds, draws, "initial", (elements,))

    def _by_group(self, noise: Tensor) -> list[Tensor]:
        parts = noise.split([math.prod(shape) for shape in self.shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]


def _by_latent(kl: Tensor) -> Tensor:
    """[B, L, ...] summed over the pixels of maps: [B, L]."""
    return kl.flatten(2).sum(2) if kl.dim() > 2 else kl


def _only(networks: nn.ModuleDict) -> VAE:
    (vae,) = networks.values()
    assert isinstance(vae, VAE)
    return vae
