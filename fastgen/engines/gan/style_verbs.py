"""The verbs of a style-based GAN's engine: what they run on, and the reference networks in their place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgen_kernels import normals

from ..verb import Tensors, Verb
from .style_request import NOISE_MODES
from .verbs import GANVerbs, dtype_of

if TYPE_CHECKING:
    from .style import StyleGANEngine

# The verb that draws samples, by noise mode: which noise is added does not change while a graph is replayed.
SAMPLES = {mode: "sample" if mode == "const" else f"sample_{mode}" for mode in NOISE_MODES}


class StyleVerbs(GANVerbs):
    """Functions of tensors [B, ...]: x in about [-1, 1], z [B, latent], w [B, w_dim], ws [B, num_ws, w_dim], noise
    [B, 1, H_i, W_i] of each layer i, labels int64 [B] where there are classes.
    """

    engine: StyleGANEngine

    def __init__(self, engine: StyleGANEngine) -> None:
        super().__init__(engine)
        self.shapes: tuple[tuple[int, int], ...] = tuple(engine.generator.noise_shapes)

    def verbs(self) -> dict[str, Verb]:
        """sample and the same with other noise, mapping, synthesis; score where the model has a discriminator."""
        noises = tuple(f"noise_{i}" for i in range(len(self.shapes)))
        made = [self._sampling(mode) for mode in NOISE_MODES]
        made += [
            Verb("mapping", ("z", *self.labels), ("w",), self.mapping, self._mapping, self._trial_z),
            Verb("synthesis", ("ws", *noises), ("x",), self.synthesis, self._synthesis, self._trial_ws),
            *self.judging(),
        ]
        return {verb.name: verb for verb in made}

    def _sampling(self, mode: str) -> Verb:
        return Verb(
            SAMPLES[mode],
            ("seeds", "psi", *self.labels),
            ("x",),
            partial(self.sample_with, mode),
            partial(self._sample_with, mode),
            self.trial_seeds,
            noise=self.all_noise if mode == "random" else self.noise,
            exact=("psi",),
        )

    # Fast.

    def sample_with(self, mode: str, seeds: Tensor, psi: Tensor, *labels: Tensor) -> Tensors:
        """(x,) of seeds int64 [B]; psi: float64 [B], of all styles."""
        (w,) = self.mapping(self.noise(seeds), *labels)
        ws = self.engine.generator.truncate(w, psi)
        return (self._images(ws, self.noise_of(mode, seeds)),)

    def mapping(self, z: Tensor, *labels: Tensor) -> Tensors:
        """(w,), float32, of latents."""
        generator: Any = self.engine.fused["generator"]
        w = generator.mapping(z.to(self.engine.dtype), *(labels or (None,)))
        return (w.float(),)

    def synthesis(self, ws: Tensor, *noise: Tensor) -> Tensors:
        """(x,), float32, of styles; noise [B or 1, 1, H_i, W_i]."""
        return (self._images(ws, noise),)

    def _images(self, ws: Tensor, noise: Sequence[Tensor] | None) -> Tensor:
        dtype = self.engine.dtype
        given = None if noise is None else [n.to(dtype) for n in noise]
        # One style that is seen by all layers stays one: the twins then need one product for all of them.
        styles = ws[:, :1].to(dtype).expand_as(ws) if ws.stride(1) == 0 else ws.to(dtype)
        generator: Any = self.engine.fused["generator"]
        x: Tensor = generator.synthesis(styles, given)
        return x.float()

    # Reference.

    def _sample_with(
        self,
        mode: str,
        networks: nn.ModuleDict,
        seeds: Tensor,
        psi: Tensor,
        *labels: Tensor,
        noise: Tensor,
    ) -> Tensors:
        generator: Any = networks["generator"]
        z, *drawn = self._split(noise)
        w = generator.mapping(z.to(dtype_of(generator)), *(labels or (None,)))
        added = [n.to(w.dtype) for n in drawn] if mode == "random" else fixed_noise(generator, mode)
        return (generator.synthesis(generator.truncate(w, psi), added),)

    def _mapping(self, networks: nn.ModuleDict, z: Tensor, *labels: Tensor) -> Tensors:
        generator: Any = networks["generator"]
        return (generator.mapping(z.to(dtype_of(generator)), *(labels or (None,))),)

    def _synthesis(self, networks: nn.ModuleDict, ws: Tensor, *noise: Tensor) -> Tensors:
        generator: Any = networks["generator"]
        dtype = dtype_of(generator)
        return (generator.synthesis(ws.to(dtype), [n.to(dtype) for n in noise]),)

    def _split(self, noise: Tensor) -> list[Tensor]:
        """z, and of `all_noise` that of every layer."""
        sizes = [math.prod(shape) for shape in self.shapes]
        if noise.shape[1] == self.config.latent:
            return [noise]
        z, *layers = noise.split([self.config.latent, *sizes], dim=1)
        return [z, *(n.unflatten(1, (1, *shape)) for n, shape in zip(layers, self.shapes, strict=True))]

    # Noise.

    def noise_of(self, mode: str, seeds: Tensor) -> list[Tensor] | None:
        """What is added to each layer: [B, 1, H_i, W_i] of each seed its own, [1, 1, H_i, W_i] for all, or nothing."""
        return self.layer_noise(seeds) if mode == "random" else fixed_noise(self.engine.generator, mode)

    def layer_noise(self, seeds: Tensor) -> list[Tensor]:
        """float32 [B, 1, H_i, W_i] for each layer i, of each seed its own: step i of the stream "step"."""
        return [
            normals(seeds, torch.full_like(seeds, i), "step", (1, *shape))
            for i, shape in enumerate(self.shapes)
        ]

    def all_noise(self, seeds: Tensor, *others: Tensor) -> Tensor:
        """float32 [B, latent + pixels of all layers]: z, and the noise of every layer."""
        return torch.cat([self.noise(seeds), *(n.flatten(1) for n in self.layer_noise(seeds))], dim=1)

    # Random trials.

    def _trial_z(self, batch: int, generator: torch.Generator) -> Tensors:
        seeds, _, *labels = self.trial_seeds(batch, generator)
        return (self.noise(seeds), *labels)

    def _trial_ws(self, batch: int, generator: torch.Generator) -> Tensors:
        """Of each sample the styles of two, crossed in the middle, and noise of its own."""
        seeds, psi, *labels = self.trial_seeds(batch, generator)
        (w,) = self.mapping(self.noise(seeds), *labels)
        ws = self.engine.generator.truncate(w, psi)
        half = ws.shape[1] // 2
        mixed = torch.cat([ws[:, :half], ws.roll(1, 0)[:, half:]], dim=1)
        return (mixed, *self.layer_noise(seeds))

    def _trial_x(self, batch: int, generator: torch.Generator) -> Tensors:
        given = self.trial_seeds(batch, generator)
        return (*self.sample_with("const", *given), *(given[2:] if self.engine.judges_labels else ()))


def fixed_noise(generator: Any, mode: str) -> list[Tensor] | None:
    """The generator's own constants, [1, 1, H_i, W_i] of each layer ("const"), or none ("none")."""
    return list(generator.noises) if mode == "const" else None
