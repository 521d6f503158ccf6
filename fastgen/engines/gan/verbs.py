"""The verbs of a GAN engine: what they run on, and the reference networks in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgen_kernels import normals, signed_seeds

from ..arguments import sample_seeds
from ..verb import Tensors, Verb
from .latents import truncated

if TYPE_CHECKING:
    from .engine import GANEngine

OPTIONS = ("factor", "bound", "level")  # float64, of a request, for each sample


class GANVerbs:
    """Functions of tensors [B, ...]: x in [-1, 1], z [B, latent], labels int64 [B] where there are classes."""

    def __init__(self, engine: GANEngine) -> None:
        self.engine = engine
        self.config: Any = engine.generator.config
        self.labels = () if engine.classes is None else ("labels",)

    def verbs(self) -> dict[str, Verb]:
        """sample and generate; score where the model has a discriminator."""
        made = [
            Verb(
                *(
                    "sample",
                    ("seeds", *OPTIONS, *self.labels),
                    ("x",),
                    self.sample,
                    self._sample,
                    self.trial_seeds,
                ),
                noise=self.noise,
                exact=OPTIONS,
            ),
            Verb(
                *(
                    "generate",
                    ("z", "level", *self.labels),
                    ("x",),
                    self.generate,
                    self._generate,
                    self._trial_z,
                ),
                exact=("level",),
            ),
        ]
        return {verb.name: verb for verb in [*made, *self.judging()]}

    def judging(self) -> list[Verb]:
        """score, where the model has a discriminator."""
        if self.engine.discriminator is None:
            return []
        judged = ("labels",) if self.engine.judges_labels else ()
        return [Verb("score", ("x", *judged), ("score",), self.score, self._score, self._trial_x)]

    # Fast.

    def sample(self, seeds: Tensor, factor: Tensor, bound: Tensor, level: Tensor, *labels: Tensor) -> Tensors:
        """(x,) of seeds int64 [B]."""
        z = truncated(self.noise(seeds), factor, bound)
        return self.generate(z, level, *labels)

    def generate(self, z: Tensor, level: Tensor, *labels: Tensor) -> Tensors:
        """(x,) of latents."""
        x = self.engine.fused["generator"](z.to(self.engine.dtype), *(labels or (None,)), level)
        return (x.float(),)  # a tanh: nothing lies outside of [-1, 1]

    def score(self, x: Tensor, *labels: Tensor) -> Tensors:
        """(logits,), [B], float32."""
        return (self.engine.fused["discriminator"](x.to(self.engine.dtype), *labels).float(),)

    # Reference.

    def _sample(
        self,
        networks: nn.ModuleDict,
        seeds: Tensor,
        factor: Tensor,
        bound: Tensor,
        level: Tensor,
        *labels: Tensor,
        noise: Tensor,
    ) -> Tensors:
        return self._generate(networks, truncated(noise, factor, bound), level, *labels)

    def _generate(self, networks: nn.ModuleDict, z: Tensor, level: Tensor, *labels: Tensor) -> Tensors:
        generator = networks["generator"]
        return (generator(z.to(dtype_of(generator)), *(labels or (None,)), level),)

    def _score(self, networks: nn.ModuleDict, x: Tensor, *labels: Tensor) -> Tensors:
        discriminator = networks["discriminator"]
        return (discriminator(x.to(dtype_of(discriminator)), *labels),)

    # Random trials.

    def trial_seeds(self, batch: int, generator: torch.Generator) -> Tensors:
        """Seeds, the model's own truncation, random labels."""
        engine = self.engine
        seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
        seeds = sample_seeds(batch, seed, None)
        labels = None
        if engine.classes is not None:
            labels = torch.randint(engine.classes, (batch,), generator=generator, device="cpu").tolist()
        return engine.tensors(engine.request(seeds=seeds, labels=labels))

    def _trial_z(self, batch: int, generator: torch.Generator) -> Tensors:
        seeds, factor, bound, level, *labels = self.trial_seeds(batch, generator)
        return (truncated(self.noise(seeds), factor, bound).float(), level, *labels)

    def _trial_x(self, batch: int, generator: torch.Generator) -> Tensors:
        given = self.trial_seeds(batch, generator)
        return (*self.sample(*given), *(given[4:] if self.engine.judges_labels else ()))

    def noise(self, seeds: Tensor, *others: Tensor) -> Tensor:
        """float32 [B, latent], of each seed its own."""
        return normals(seeds, torch.zeros_like(seeds), "initial", (self.config.latent,))


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of its parameters."""
    return next(network.parameters()).dtype


def seed_tensor(seeds: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 [B], on the device."""
    return signed_seeds(seeds).to(device)
