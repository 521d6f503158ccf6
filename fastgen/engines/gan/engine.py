"""The verbs of a GAN: sample, generate, interpolate, score, best_of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint import Spec
from ...config import shown
from ...errors import ConfigError
from ...fused.gan import fused
from ...images import PICTURES, Range, to_output
from ..arguments import as_index, sample_count, sample_labels
from ..finished import finite, warn_not_finite
from ..great_circles import joined
from ..streams import Streams
from ..verb import Networks, Verb
from .latents import truncated
from .request import GANRequest, GANSettings, LabelSettings, resolve
from .verbs import GANVerbs, seed_tensor

PARTS = ("generator", "discriminator")
MAX_FRAMES = 10_000


@dataclass(frozen=True)
class Best:
    """What `best_of` kept, the best first. images: [n, C, H, W] in [-1, 1]; scores: float32 [n]; seeds: theirs."""

    images: Tensor
    scores: Tensor
    seeds: tuple[int, ...]


class GANEngine(Streams):
    """Draws images from a generator, and judges images by its discriminator. Made by :func:`fastgen.load`.

    x: float32 [n, C, H, W] in [-1, 1]. z: float [n, latent]. Threads, forks: see ``Engine``.
    """

    kind = "gan"
    asked = ("truncation", "truncation_law", *Streams.asked)
    settings_type: ClassVar[type] = GANSettings
    style_based: ClassVar[bool] = False  # whether its generators have a mapping network and a synthesis
    settings: Any

    def __init__(self, networks: Networks, settings: LabelSettings | None = None, **options: Any) -> None:
        """networks: "generator", and "discriminator" if there is one. options: those of ``Engine``.

        Raises ConfigError.
        """
        settings = settings or self.settings_type()
        check_names(networks)
        generator: Any = networks["generator"]
        if hasattr(generator, "num_ws") != self.style_based:
            kind = "StyleGANEngine" if hasattr(generator, "num_ws") else "GANEngine"
            raise ConfigError(f"a {type(generator).__name__} is for a {kind}", argument="generator")
        settings.check_classes(generator.config.num_classes)
        super().__init__(networks, settings, **options)

    @classmethod
    def from_spec(cls, networks: nn.ModuleDict, spec: Spec, **options: Any) -> Self:
        """See ``Engine``. Of a style-based generator a ``StyleGANEngine``."""
        check_names(networks)
        if hasattr(networks["generator"], "num_ws") and not cls.style_based:
            from .style import StyleGANEngine

            found: Any = StyleGANEngine.from_spec(networks, spec, **options)
            return found
        return super().from_spec(networks, spec, **options)

    @classmethod
    def check_parts(cls, spec: Spec) -> None:
        """See ``Engine``."""
        check_names(spec.parts)

    @property
    def generator(self) -> Any:
        return self.networks["generator"]

    @property
    def discriminator(self) -> Any:
        """None where the model has none."""
        return dict(self.networks.items()).get("discriminator")

    @property
    def classes(self) -> int | None:
        """How many labels the generator knows; None: it takes none."""
        found: int | None = self.generator.config.num_classes
        return found

    @property
    def judges_labels(self) -> bool:
        """Whether the discriminator takes labels."""
        return self.discriminator is not None and self.discriminator.config.num_classes is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        found: tuple[int, ...] = tuple(self.generator.config.shape)
        return found

    @property
    def value_range(self) -> Range:
        """See ``Engine``."""
        return PICTURES

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: Any = None,
        truncation: float | Any | None = ...,
        truncation_law: str | None = None,
        output_type: str = "pt",
        **unknown: Any,
    ) -> Tensor | np.ndarray | list:
        """Draw `n` images: [n, C, H, W] in [-1, 1] on the engine's device.

        n: how many; by default as many as there are seeds or labels, else 1.
        seed: sample k has seed + k, in [0, 2^64); seeds: one per sample. Neither: seeds from the system's entropy.
            A sample depends on its seed and label, not on how many are drawn beside it.
        labels: class numbers or names, one for all or one per sample; a class-conditional model needs them.
        truncation: t > 0, or None for whole normals; by default the model's own. Smaller t: likelier images, less
            variety (Brock et al. 2019, section 3.1). A model with standing statistics takes those of t, or of 1.
        truncation_law: "rescale" for t * z with z normal within [-2, 2], as published BigGAN models are used; "clip"
            for z within [-t, t]. In both values that would lie outside are drawn anew, here by the inverse CDF.
        output_type: "pt"; "np": float32 [n, H, W, C] in [0, 1]; "pil": a list of images.

        ConfigError (a ValueError) for values out of range, ArgumentError (a TypeError) for names that do not exist.
        """
        to_output(None, output_type)
        request = self.request(
            n,
            seed=seed,
            seeds=seeds,
            labels=labels,
            truncation=truncation,
            truncation_law=truncation_law,
            **unknown,
        )
        return self.draw(request, output_type=output_type)

    def draw(self, request: GANRequest, *, output_type: str = "pt") -> Tensor | np.ndarray | list:
        """As `sample`, of what `request` returned."""
        to_output(None, output_type)
        (x,) = self.call("sample", *self.tensors(request))
        warn_not_finite(finite(x), request.seeds, self.dtype)
        return to_output(x, output_type)

    def generate(self, z: Tensor, *, labels: Any = None, level: float = 1.0) -> Tensor:
        """Images [n, C, H, W] of latents float [n, latent]. level: the truncation, 0 to 1, whose statistics are taken.

        Raises ConfigError.
        """
        if isinstance(level, bool) or not isinstance(level, Real) or not 0 <= level <= 1:
            raise ConfigError(f"expected a number from 0 to 1, got {shown(level)}", argument="level")
        z = self._floats("z", z, (self.generator.config.latent,))
        levels = torch.full((len(z),), float(level), device=self.device, dtype=torch.float64)
        return self.call("generate", z, levels, *self._labels(len(z), labels, self.classes))[0]

    def latents(self, request: GANRequest) -> Tensor:
        """z of a request's samples, float64 [n, latent]: `generate` makes the same images of them."""
        seeds, factor, bound, *_ = self.tensors(request)
        return truncated(GANVerbs(self).noise(seeds), factor, bound)

    def interpolate(
        self,
        seeds: Sequence[int],
        frames: int = 16,
        *,
        space: str = "z",
        labels: Any = None,
        truncation: float | Any | None = ...,
        truncation_law: str | None = None,
        output_type: str = "pt",
        **unknown: Any,
    ) -> Tensor | np.ndarray | list:
        """From the image of each seed to that of the next: [(len(seeds) - 1) * frames + 1, C, H, W].

        The images of the seeds are those of `sample`. Between two of them are `frames` - 1 others.
        space: "z", along great circles (slerp): normals of many dimensions lie close to a sphere. labels: one for all
        images, or one per seed, which holds until the next seed. Other arguments: see `sample`. Raises ConfigError.
        """
        to_output(None, output_type)
        if space != "z":
            raise ConfigError(f"expected z, got {shown(space)}", argument="space")
        frames = frame_count(frames)
        request = self.request(
            seeds=seeds, labels=labels, truncation=truncation, truncation_law=truncation_law, **unknown
        )
        z, chosen = self._way(request, frames)
        return to_output(self.generate(z, labels=chosen, level=request.level), output_type)

    def _way(self, request: Any, frames: int) -> tuple[Tensor, list[int] | None]:
        """z [(seeds - 1) * frames + 1, latent] from each sample of a request to the next, labels. ConfigError."""
        if len(request.seeds) < 2:
            raise ConfigError("expected at least 2", argument="seeds")
        labels = None
        if self.classes is not None:
            labels = [label for label in request.labels[:-1] for _ in range(frames)] + [request.labels[-1]]
        return joined(self.latents(request), frames), labels

    def score(self, x: Tensor, *, labels: Any = None) -> Tensor:
        """The discriminator's logits [n] of images x float [n, C, H, W] in [-1, 1]: higher for what it takes for real.

        labels: one for all or one per image, where the discriminator takes them. Scores say how real an image looks,
        not whether it shows its label: in training no image stood beside a wrong one. A discriminator that is still in
        training against this generator says little of its own best images. Raises ConfigError where there is none.
        """
        self._check_judge()
        x = self._floats("x", x, tuple(self.discriminator.config.shape))
        classes = self.discriminator.config.num_classes
        return self.call("score", x, *self._labels(len(x), labels, classes))[0]

    def best_of(
        self,
        candidates: int,
        n: int = 1,
        *,
        seed: int | None = None,
        labels: Any = None,
        **options: Any,
    ) -> Best:
        """Of `candidates` samples of consecutive seeds the `n` that the discriminator scores highest.

        labels: one for all, or one per candidate. options: those of `sample` that say how latents are truncated. Raises
        ConfigError, also where there is no discriminator, or ArgumentError.
        """
        self._check_judge()
        n = as_index(n)
        count = sample_count(candidates, None, None)
        if type(n) is not int or not 1 <= n <= count:
            raise ConfigError(f"expected an int from 1 to {count}, got {shown(n)}", argument="n")
        request = self.request(count, seed=seed, labels=labels, **options)
        x: Any = self.draw(request)
        scores = self.score(x, labels=list(request.labels) if self.judges_labels else None)
        best = scores.argsort(descending=True, stable=True)[:n]
        seeds = tuple(request.seeds[i] for i in best.tolist())
        return Best(x[best], scores[best], seeds)

    def verbs(self) -> dict[str, Verb]:
        """sample, generate and, with a discriminator, score."""
        return GANVerbs(self).verbs()

    def request(self, /, n: int | None = None, **arguments: Any) -> GANRequest:
        """What ``sample(n, **arguments)`` would draw, with every default and random seed filled in."""
        return resolve(self.settings, self.classes, n=n, **arguments)

    def tensors(self, request: GANRequest) -> tuple[Tensor, ...]:
        """The arguments of the verb "sample" for a request."""
        self._check_alive()  # before the first tensor on the device
        options = [
            torch.full((len(request.seeds),), value, device=self.device, dtype=torch.float64)
            for value in (request.factor, request.bound, request.level)
        ]
        labels = self._labels(len(request.seeds), request.labels, self.classes)
        return (seed_tensor(request.seeds, self.device), *options, *labels)

    def running(self) -> dict[str, nn.Module]:
        """See ``Engine``."""
        return self.fused

    def _prepare(self) -> None:
        self.fused = {name: fused(network) for name, network in self.networks.items()}

    def _facts(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "latent": self.generator.config.latent,
            "classes": self.classes,
            "discriminator": self.discriminator is not None,
        }

    def _defaults(self) -> dict[str, Any]:
        return {"truncation": self.settings.truncation, "truncation_law": self.settings.truncation_law}

    def _labels(self, count: int, labels: Any, classes: int | None) -> tuple[Tensor, ...]:
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        numbers = sample_labels(count, labels, classes, self.settings.class_names, False)
        if classes is None:
            return ()
        return (torch.tensor(numbers, dtype=torch.int64, device=self.device),)

    def _floats(self, name: str, x: Any, shape: tuple[int, ...]) -> Tensor:
        if (
            not isinstance(x, Tensor)
            or not x.is_floating_point()
            or tuple(x.shape[1:]) != shape
            or not len(x)
        ):
            found = list(x.shape) if isinstance(x, Tensor) else shown(x)
            wanted = ", ".join(map(str, shape))
            raise ConfigError(f"expected a float tensor [n, {wanted}], got {found}", argument=name)
        self._check_alive()
        return x.detach().to(self.device, torch.float32)

    def _check_judge(self) -> None:
        if self.discriminator is None:
            raise ConfigError("this model has none, which scores images", argument="discriminator")


def frame_count(frames: Any) -> int:
    """How many images from one to the next an interpolation has. Raises ConfigError."""
    found = as_index(frames)
    if type(found) is not int or not 1 <= found <= MAX_FRAMES:
        raise ConfigError(f"expected an int from 1 to {MAX_FRAMES}, got {shown(frames)}", argument="frames")
    return found


def shares(frames: int) -> Tensor:
    """float64 [frames]: 0, 1 / frames, ... below 1."""
    return torch.arange(frames, dtype=torch.float64, device="cpu") / frames


def check_names(parts: Any) -> None:
    """ConfigError unless there is a generator, and nothing else but perhaps a discriminator."""
    if "generator" not in parts or set(parts) - set(PARTS):
        raise ConfigError(
            f"expected a generator and perhaps a discriminator, got {', '.join(parts) or 'none'}",
            argument="parts",
        )
