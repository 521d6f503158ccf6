"""The engine of style-based GANs: what a GAN does, and styles: truncated, mixed, interpolated, found for an image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...config import shown
from ...errors import ArgumentError, ConfigError, renamed
from ...images import PICTURES, to_output, within
from ..arguments import check_known, parameters, sample_seeds
from ..finished import finite, warn_not_finite
from ..streams import Streams
from ..verb import Networks, Verb
from .engine import GANEngine, frame_count, shares
from .projection import Projection, ProjectionOptions, check_pictures, projected
from .style_request import (
    StyleGANRequest,
    StyleGANSettings,
    checked_cutoff,
    checked_layers,
    checked_noise,
    checked_psi,
    resolve,
)
from .style_verbs import SAMPLES, StyleVerbs, fixed_noise
from .verbs import seed_tensor

SPACES = ("z", "w")


class StyleGANEngine(GANEngine):
    """Draws images from a style-based generator (StyleGAN, StyleGAN2). Made by :func:`fastgen.load`.

    x: float32 [n, C, H, W] in [-1, 1]. z: float [n, latent]. w: float [n, w_dim], what the mapping network makes of z.
    ws: float [n, num_ws, w_dim], a style for each layer of the synthesis. Threads, forks: see ``Engine``.
    """

    asked = ("truncation_psi", "truncation_cutoff", "noise_mode", *Streams.asked)
    settings_type: ClassVar[type] = StyleGANSettings
    style_based = True

    def __init__(self, networks: Networks, settings: StyleGANSettings | None = None, **options: Any) -> None:
        """See ``GANEngine``."""
        super().__init__(networks, settings, **options)
        self.settings.check_styles(self.styles)

    @property
    def styles(self) -> int:
        """How many styles the synthesis takes, num_ws."""
        found: int = self.generator.num_ws
        return found

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: Any = None,
        truncation_psi: float | Sequence[float] | Any | None = ...,
        truncation_cutoff: int | Any | None = ...,
        noise_mode: str | None = None,
        output_type: str = "pt",
        **unknown: Any,
    ) -> Tensor | np.ndarray | list:
        """Draw `n` images: [n, C, H, W] in [-1, 1], clamped, on the engine's device.

        n, seed, seeds, labels, output_type: see ``GANEngine.sample``.
        truncation_psi: psi in w_mean + psi (w - w_mean), w_mean the mean of w over the training: 1 leaves w alone, a
            smaller psi gives likelier images and less variety, 0 one image for all seeds, a negative one the opposite
            of a seed's image (Karras et al. 2019, appendix B). -10 to 10, one for all or one per sample; None: 1; by
            default the model's own.
        truncation_cutoff: of how many styles, from the coarsest, psi is; None: of all; by default the model's own.
        noise_mode: "const", the noise images that the generator keeps, one for all samples; "random", of each seed its
            own, the same in any batch; "none". By default the model's own, which is "const" unless it says otherwise.

        ConfigError (a ValueError) for values out of range, ArgumentError (a TypeError) for names that do not exist.
        """
        to_output(None, output_type)
        request = self.request(
            n,
            seed=seed,
            seeds=seeds,
            labels=labels,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
            **unknown,
        )
        return self.draw(request, output_type=output_type)

    def draw(self, request: StyleGANRequest, *, output_type: str = "pt") -> Tensor | np.ndarray | list:  # type: ignore[override]
        """As `sample`, of what `request` returned."""
        to_output(None, output_type)
        if request.truncation_cutoff is None:
            (x,) = self.call(SAMPLES[request.noise_mode], *self.tensors(request))
        else:  # where all layers have one style the twins need one product for all of them
            noise = self._noise_of(request.noise_mode, request.seeds, len(request.seeds))
            x = self._synthesis(self._ws(request), noise)
        return self._shown(x, request.seeds, output_type)

    def mapping(self, z: Tensor, *, labels: Any = None) -> Tensor:
        """w float32 [n, w_dim] of latents float [n, latent], without truncation. Raises ConfigError."""
        z = self._floats("z", z, (self.generator.config.latent,))
        return self.call("mapping", z, *self._labels(len(z), labels, self.classes))[0]

    def truncate(
        self, w: Tensor, truncation_psi: Any = ..., truncation_cutoff: int | Any | None = ...
    ) -> Tensor:
        """ws float32 [n, num_ws, w_dim] of w float [n, w_dim]: the style of every layer, see `sample`. ConfigError."""
        w = self._floats("w", w, (self.generator.config.w_dim,))
        own = self.settings
        psi = checked_psi(own.truncation_psi if truncation_psi is ... else truncation_psi, len(w))
        cutoff = own.truncation_cutoff if truncation_cutoff is ... else truncation_cutoff
        return self._truncate(w, psi, checked_cutoff(cutoff, self.styles))

    def synthesis(
        self,
        ws: Tensor,
        *,
        noise_mode: str | None = None,
        seeds: Sequence[int] | None = None,
        noise: Sequence[Tensor] | None = None,
        output_type: str = "pt",
    ) -> Tensor | np.ndarray | list:
        """Images [n, C, H, W] in [-1, 1], clamped, of styles float [n, num_ws, w_dim].

        noise_mode: see `sample`; "random" needs `seeds`, one per sample. noise: instead, a tensor [n, 1, H_i, W_i] or
        [1, 1, H_i, W_i] for each of ``generator.noise_shapes``. Raises ConfigError or ArgumentError.
        """
        to_output(None, output_type)
        ws = self._floats("ws", ws, (self.styles, self.generator.config.w_dim))
        if noise is not None:
            if noise_mode is not None or seeds is not None:
                raise ArgumentError("noise is given: leave it out", argument="noise_mode, seeds")
            given = self._noise(noise, len(ws))
        else:
            mode = checked_noise(self.settings.noise_mode if noise_mode is None else noise_mode)
            if (seeds is not None) != (mode == "random"):
                raise ConfigError(
                    f"noise_mode random needs one per sample, others take none; this is {mode}",
                    argument="seeds",
                )
            given = self._noise_of(mode, sample_seeds(len(ws), None, seeds), len(ws))
        return self._shown(self._synthesis(ws, given), None, output_type)

    def generate(  # type: ignore[override]
        self,
        z: Tensor,
        *,
        labels: Any = None,
        truncation_psi: Any = ...,
        truncation_cutoff: int | Any | None = ...,
        noise_mode: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Images [n, C, H, W] of latents float [n, latent]: `mapping`, `truncate` and `synthesis`, see there."""
        ws = self.truncate(self.mapping(z, labels=labels), truncation_psi, truncation_cutoff)
        found: Any = self.synthesis(ws, noise_mode=noise_mode, seeds=seeds)
        return found

    def latents(self, request: StyleGANRequest) -> Tensor:  # type: ignore[override]
        """z of a request's samples, float32 [n, latent]: `mapping` makes the same w of them."""
        return StyleVerbs(self).noise(self.tensors(request)[0])

    def mix(
        self,
        seeds_a: Sequence[int],
        seeds_b: Sequence[int],
        layers: Sequence[int],
        *,
        labels: Any = None,
        labels_b: Any = ...,
        truncation_psi: float | Sequence[float] | Any | None = ...,
        truncation_cutoff: int | Any | None = ...,
        noise_mode: str | None = None,
        output_type: str = "pt",
        **unknown: Any,
    ) -> Tensor | np.ndarray | list:
        """Images [n, C, H, W] with the styles `layers` of the sample of each of `seeds_b`, the others of `seeds_a`.

        layers: numbers of styles, 0 (the coarsest) to num_ws - 1; all of them: the samples of `seeds_b`, none: those of
        `seeds_a` (Karras et al. 2019, section 3.1). labels: of `seeds_a`; labels_b: of `seeds_b`, by default the same.
        Random noise is that of `seeds_a`. Other arguments: see `sample`. Raises ConfigError or ArgumentError.
        """
        check_known(unknown, parameters(self.mix), "mix takes")
        to_output(None, output_type)
        options: dict[str, Any] = {
            "truncation_psi": truncation_psi,
            "truncation_cutoff": truncation_cutoff,
            "noise_mode": noise_mode,
        }
        with renamed({"seeds": "seeds_a"}):
            a = self.request(seeds=seeds_a, labels=labels, **options)
        with renamed({"seeds": "seeds_b", "labels": "labels" if labels_b is ... else "labels_b"}):
            given = labels if labels_b is ... else labels_b
            b = self.request(seeds=seeds_b, labels=given, **options)
        if len(a.seeds) != len(b.seeds):
            raise ConfigError(
                f"expected as many as seeds_a ({len(a.seeds)}), got {len(b.seeds)}", argument="seeds_b"
            )
        chosen = torch.zeros(self.styles, dtype=torch.bool, device="cpu")
        chosen[checked_layers(layers, self.styles)] = True
        ws = torch.where(chosen[:, None].to(self.device), self._ws(b), self._ws(a))
        x = self._synthesis(ws, self._noise_of(a.noise_mode, a.seeds, len(ws)))
        return self._shown(x, None, output_type)

    def interpolate(
        self,
        seeds: Sequence[int],
        frames: int = 16,
        *,
        space: str = "z",
        labels: Any = None,
        truncation_psi: float | Sequence[float] | Any | None = ...,
        truncation_cutoff: int | Any | None = ...,
        noise_mode: str | None = None,
        output_type: str = "pt",
        **unknown: Any,
    ) -> Tensor | np.ndarray | list:
        """From the image of each seed to that of the next: [(len(seeds) - 1) * frames + 1, C, H, W].

        The images of the seeds are those of `sample`. Between two of them are `frames` - 1 others.
        space: "z", along great circles (slerp), where a label holds until the next seed; "w", along straight lines of
        the styles, from one label to the next as well. truncation_psi: where it is one per seed it goes along straight
        lines. Random noise is that of the first seed in all images. Other arguments: see `sample`. Raises ConfigError.
        """
        to_output(None, output_type)
        if space not in SPACES:
            raise ConfigError(f"expected one of {', '.join(SPACES)}, got {shown(space)}", argument="space")
        frames = frame_count(frames)
        request = self.request(
            seeds=seeds,
            labels=labels,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
            **unknown,
        )
        z, chosen = self._way(request, frames)  # which checks that there are two
        if space == "w":
            ends = self._ws(request)
            share = shares(frames).to(self.device, ends.dtype)[:, None, None]
            ws = torch.cat([*(torch.lerp(a, b, share) for a, b in itertools.pairwise(ends)), ends[-1:]])
        else:
            w = self.mapping(z, labels=chosen)
            psis = torch.tensor(request.psis, dtype=torch.float64, device="cpu")
            ways = [torch.lerp(a, b, shares(frames)) for a, b in itertools.pairwise(psis)]
            ws = self._truncate(w, tuple(torch.cat([*ways, psis[-1:]]).tolist()), request.truncation_cutoff)
        x = self._synthesis(ws, self._noise_of(request.noise_mode, request.seeds[:1] * len(ws), len(ws)))
        return self._shown(x, None, output_type)

    def project(
        self,
        x: Tensor,
        *,
        steps: int = ProjectionOptions.steps,
        space: str = ProjectionOptions.space,
        labels: Any = None,
        seed: int = 0,
        learning_rate: float = ProjectionOptions.learning_rate,
        noise_mode: str = "const",
        progress: Callable[[int, Tensor], None] | None = None,
    ) -> Projection:
        """Styles whose images come close to `x` float [n, C, H, W] in [-1, 1], by gradient descent.

        steps: of Adam, 1 to 100,000. space: "w", one style for all layers, which stays near what the generator draws;
        "w+", a style for each layer, which comes closer. labels: of a class-conditional generator, of what class the
        search begins; None: of all classes. seed: of the candidates for that, and of the noise on w, which is the same
        for all images: what is found for one does not depend on the others. noise_mode: "const" or "none". progress:
        called before each step, once for all images, with its number and losses [n]. The method:
        ``fastgen.engines.gan.projection``. The reference network runs, in float32.

        Raises ConfigError, also for values that are not finite or not in [-1, 1], and where no image near one of `x` is
        finite. A descent that becomes NaN later is a warning.
        """
        x = self._floats("x", x, self.shape)
        options = ProjectionOptions(steps, space, seed, learning_rate, checked_noise(noise_mode))
        options.check()
        check_pictures(x)
        given = None if labels is None else self._labels(len(x), labels, self.classes)
        with self._working():
            return projected(self, x, given[0] if given else None, options, progress)

    def verbs(self) -> dict[str, Verb]:
        """sample, sample_random, sample_none, mapping, synthesis and, with a discriminator, score."""
        return StyleVerbs(self).verbs()

    def request(self, /, n: int | None = None, **arguments: Any) -> StyleGANRequest:  # type: ignore[override]
        """What ``sample(n, **arguments)`` would draw, with every default and random seed filled in."""
        return resolve(self.settings, self.classes, self.styles, n=n, **arguments)

    def tensors(self, request: StyleGANRequest) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The arguments of the verbs "sample" for a request, but for its cutoff."""
        self._check_alive()  # before the first tensor on the device
        return (
            seed_tensor(request.seeds, self.device),
            torch.tensor(request.psis, device=self.device, dtype=torch.float64),
            *self._labels(len(request.seeds), request.labels, self.classes),
        )

    def _truncate(self, w: Tensor, psi: float | tuple[float, ...], cutoff: int | None) -> Tensor:
        """ws, of arguments that are checked."""
        psis = torch.tensor(psi, device=self.device, dtype=torch.float64).expand(len(w))
        with torch.no_grad():
            found: Tensor = self.generator.truncate(w, psis, cutoff)
        return found.contiguous()

    def _ws(self, request: StyleGANRequest) -> Tensor:
        """The truncated styles of a request's samples."""
        labels = None if self.classes is None else list(request.labels)
        w = self.mapping(self.latents(request), labels=labels)
        return self._truncate(w, request.truncation_psi, request.truncation_cutoff)

    def _synthesis(self, ws: Tensor, noise: Sequence[Tensor]) -> Tensor:
        return self.call("synthesis", ws, *noise)[0]

    def _noise_of(self, mode: str, seeds: Sequence[int], count: int) -> list[Tensor]:
        """[count, 1, H_i, W_i] for each layer. seeds: one per sample, of random noise."""
        if mode == "random":
            return StyleVerbs(self).layer_noise(seed_tensor(tuple(seeds), self.device))
        constants: Any = fixed_noise(self.generator, "const")
        if mode == "none":
            constants = [torch.zeros_like(n) for n in constants]
        return [n.float().expand(count, -1, -1, -1) for n in constants]

    def _noise(self, noise: Any, count: int) -> list[Tensor]:
        """The caller's own, checked."""
        shapes = self.generator.noise_shapes
        if not isinstance(noise, (list, tuple)) or len(noise) != len(shapes):
            raise ConfigError(
                f"expected a list of {len(shapes)} tensors, one per layer, got {shown(noise)}",
                argument="noise",
            )
        given = [self._floats(f"noise[{i}]", n, (1, *shapes[i])) for i, n in enumerate(noise)]
        for i, n in enumerate(given):
            if len(n) not in (1, count):
                raise ConfigError(f"expected 1 or {count} of them, got {len(n)}", argument=f"noise[{i}]")
        return [n.expand(count, -1, -1, -1) for n in given]

    def _shown(self, x: Tensor, seeds: Sequence[int] | None, output_type: str) -> Tensor | np.ndarray | list:
        """x clamped; seeds: of samples, for a warning where some are not finite."""
        if seeds is not None:
            warn_not_finite(finite(x), seeds, self.dtype)
        return to_output(within(x, PICTURES), output_type)

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "w_dim": self.generator.config.w_dim, "styles": self.styles}

    def _defaults(self) -> dict[str, Any]:
        return {
            name: getattr(self.settings, name)
            for name in ("truncation_psi", "truncation_cutoff", "noise_mode")
        }
