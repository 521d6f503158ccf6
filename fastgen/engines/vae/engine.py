"""The verbs of a variational autoencoder: encode, decode, reconstruct, sample, elbo, log_prob, interpolate,
traverse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastgen_kernels import signed_seeds

from ...checkpoint import Spec
from ...config import shown
from ...errors import ConfigError
from ...fused.swap import census, convolutions, swap
from ...images import PICTURES, Range, to_output, within
from ...models.vae.vae import VAE, Normal
from ...runtime.device import dtype_name
from ..arguments import as_index, sample_labels
from ..base import only_part
from ..finished import finite, warn_not_finite
from ..flow.bits import BitsPerDim
from ..latent import LatentEngine, check_steps
from ..layers import Name, jittering
from ..verb import Verb
from ..verification import Check
from . import likelihood
from .request import VAERequest, VAESettings, pinned_groups, resolve
from .results import ELBO, KLReport, LogProb
from .tiling import TilingReport, compare, tiled_decode, tiled_encode
from .verbs import VAEVerbs

IMAGES_PER_CALL = 64
ROWS_PER_CALL = 1024
WIDE = ("standardise", "likelihood")  # parts of a network that stay in float32


class VAEEngine(LatentEngine):
    """Encodes, decodes and draws, and bounds how likely data is. Made by :func:`fastgen.load`. Threads: see ``Engine``.

    x: images, float32 [n, C, H, W] in [-1, 1], or rows in the data's own units, [n, D]. Latents come in groups, the top
    one first; a flat VAE has one. What a decoder says of x is a distribution; images that are handed out are its means.
    Distributions and likelihoods are float32 whatever the networks' type is.
    """

    kind = "vae"
    asked = ("temperature", *LatentEngine.asked)
    one_network = True
    operation = "twins"
    settings_type = VAESettings
    settings: VAESettings

    def __init__(
        self,
        vae: VAE,
        settings: VAESettings | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
        source: str = "",
        architectures: dict[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        channels_last: bool = True,
        max_batch: int | None = None,
        graph: bool | str = True,
    ) -> None:
        """`vae` is moved to `device` and `dtype` and belongs to the engine from here on.

        max_batch: samples at a time, by default 64 images or 1024 rows; 1 is what diffusers calls slicing. Other
        arguments: see ``Engine``. Raises ConfigError.
        """
        settings = settings or VAESettings()
        settings.check_network(vae)
        if max_batch is None:
            max_batch = IMAGES_PER_CALL if len(vae.data_shape) == 3 else ROWS_PER_CALL
        super().__init__(
            {next(iter(architectures or {}), "vae"): vae},
            settings,
            device=device,
            dtype=dtype,
            source=source,
            architectures=architectures,
            provenance=provenance,
            channels_last=channels_last,
            max_batch=max_batch,
            graph=graph,
        )

    @property
    def vae(self) -> VAE:
        """The reference network; `fused` runs in its place."""
        return cast(VAE, self.network)

    @classmethod
    def from_spec(cls, networks: nn.ModuleDict, spec: Spec, **options: Any) -> Self:
        """From the filled network of a checkpoint, by part. options: those of ``VAEEngine``. Raises ConfigError."""
        name, network = only_part(networks)
        if not isinstance(network, VAE):
            raise ConfigError(f"{spec.parts[name].architecture} is not a VAE", argument=f"parts.{name}")
        return cls(network, cls.settings_of(spec), **cls.records(spec), **options)

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: Any = None,
        temperature: float | Sequence[float] | None = None,
        latents: Mapping[int, Tensor] | None = None,
        output_type: str = "pt",
    ) -> Tensor | np.ndarray | list:
        """Draw `n` samples: the means of p(x | z) of z drawn from the prior, [n, *shape]; images are clipped to [-1,
        1].

        n: how many; by default as many as there are seeds or labels, else 1.
        seed: sample k has seed + k, in [0, 2^64); seeds: one per sample. Neither: seeds from the system's entropy.
        labels: class numbers or names, one for all or one per sample.
        temperature: factor of the prior's standard deviations, one for all or a list of one for each group.
        latents: {group: z [n, *shape] or [1, *shape]} that are not drawn; what is below them is drawn given them.
        output_type: "pt"; for images also "np": float32 [n, H, W, C] in [0, 1]; "pil": a list of images.

        ConfigError (a ValueError) for values out of range, ArgumentError (a TypeError) for names that do not exist.
        """
        self._check_output(output_type)
        request = self.request(n, seed=seed, seeds=seeds, labels=labels, temperature=temperature)
        return self.draw(request, latents=latents, output_type=output_type)

    def draw(
        self, request: VAERequest, *, latents: Mapping[int, Tensor] | None = None, output_type: str = "pt"
    ) -> Tensor | np.ndarray | list:
        """As `sample`, of what `request` returned; a request does not hold pinned latents."""
        self._check_output(output_type)
        count = len(request.seeds)
        condition = self.condition(count, None if self.vae.classes is None else request.labels)
        numbers = signed_seeds(request.seeds).to(self.device)
        row = torch.tensor(request.temperature, dtype=self.state_dtype, device=self.device)
        given = pinned_groups(self.vae, latents)
        if not given:
            (x,) = self.call("sample", numbers, row.expand(count, -1), *condition)
        else:
            kept = [self._pinned(given.get(group), group, count) for group in range(self.vae.groups)]
            if self.vae.groups == 1:
                x = within(self.call("decode", kept[0], *condition)[0], self.value_range)
            else:
                mask = torch.tensor([group in given for group in range(self.vae.groups)], device=self.device)
                (x,) = self.call(
                    "pinned", numbers, row.expand(count, -1), mask.expand(count, -1), *kept, *condition
                )
        warn_not_finite(finite(x), request.seeds, self.dtype)
        return to_output(x, output_type)

    def encode(self, x: Tensor, *, labels: Any = None, tile: int | None = None) -> list[Normal]:
        """q(z | x) of each group of latents: means and log-variances; those of the groups above it at their means.

        tile: pixels of a side; images of an AutoencoderKL are encoded in such tiles, see ``engines.vae.tiling``.
        """
        x = self.data("x", x)
        if tile is not None:
            return [tiled_encode(self, x, tile)]
        found = self.call("encode", x, *self.condition(len(x), labels))
        return [Normal(mean, log_var) for mean, log_var in zip(found[::2], found[1::2], strict=True)]

    def decode(
        self, latents: Tensor | Sequence[Tensor], *, labels: Any = None, tile: int | None = None
    ) -> Tensor:
        """The mean of p(x | z), [n, *shape], of the latents of every group (a tensor alone where there is one).

        Images are not clipped: those of some decoders may leave [-1, 1]. tile: as for `encode`.
        """
        given = self._latents(latents)
        if tile is not None:
            return tiled_decode(self, given[0], tile)
        return self.call("decode", *given, *self.condition(len(given[0]), labels))[0]

    def reconstruct(
        self, x: Tensor, *, labels: Any = None, output_type: str = "pt"
    ) -> Tensor | np.ndarray | list:
        """What the means of q(z | x) are decoded to: [n, *shape]; images are clipped to [-1, 1]."""
        self._check_output(output_type)
        found = self.decode([normal.mean for normal in self.encode(x, labels=labels)], labels=labels)
        return self._shown(found, output_type)

    def elbo(self, x: Tensor, *, labels: Any = None, seed: int = 0) -> ELBO:
        """A lower bound of log p(x) in nats by one draw of z, in its parts: see ``ELBO``.

        Of a logistic decoder of levels, whose probabilities are bounded. Of a bernoulli decoder it is one for black and
        white pixels; for grey ones log_likelihood is the negative cross-entropy. seed: of z; that of x[k] is seed + k.
        """
        return likelihood.elbo(self, x, labels, seed)

    def log_prob(self, x: Tensor, samples: int = 1, *, labels: Any = None, seed: int = 0) -> LogProb:
        """A bound of log p(x) in nats by `samples` draws of z, and its kind: see ``LogProb``.

        Of decoders of levels (bernoulli: 2, logistic) x has these levels, as images in [-1, 1] or as integers, and p is
        a probability. Else it is the density of continuous x in its units.
        """
        return likelihood.log_prob(self, x, samples, labels, seed)

    def bits_per_dim(self, x: Tensor, samples: int = 1, *, labels: Any = None, seed: int = 0) -> BitsPerDim:
        """-log2 P(x) a dimension, [n], bounded by `samples` draws, and its kind: see ``BitsPerDim``.

        x: images in [-1, 1] whose values are levels, or the levels as integers; a gaussian decoder's are dequantised by
        uniform noise, anew with each draw of z. Rows are taken as they are.
        """
        return likelihood.bits_per_dim(self, x, samples, labels, seed)

    def compare_tiling(self, latents: Tensor, tile: int) -> TilingReport:
        """How far images decoded in tiles are from those decoded as a whole."""
        (z,) = self._latents(latents)
        return compare(tiled_decode(self, z, tile), self.call("decode", z)[0], tile)

    def report(self, x: Tensor, *, labels: Any = None, seed: int = 0) -> KLReport:
        """What each latent tells of the data x, and which have collapsed. seed: of the draws of hierarchical models."""
        return likelihood.report(self, x, labels, seed)

    def interpolate(
        self, a: Tensor, b: Tensor, steps: int = 8, *, labels: Any = None, output_type: str = "pt"
    ) -> Tensor | np.ndarray | list:
        """From a to b along the straight lines between the means of their latents.

        a, b: [n, *shape]. Returns [n * steps, *shape], a row of `steps` for each pair, from a's reconstruction to b's;
        images are clipped. labels: one for all or one per pair.
        """
        self._check_output(output_type)
        steps = check_steps(steps)
        start, end = ([normal.mean for normal in self.encode(x, labels=labels)] for x in (a, b))
        between = self._between(start, end, steps)
        condition = [c.repeat_interleave(steps, 0) for c in self.condition(len(start[0]), labels)]
        return self._shown(self.call("decode", *between, *condition)[0], output_type)

    def traverse(
        self,
        dimension: int,
        *,
        x: Tensor | None = None,
        group: int = 0,
        steps: int = 8,
        limit: float = 3.0,
        labels: Any = None,
        output_type: str = "pt",
    ) -> Tensor | np.ndarray | list:
        """One latent from -limit to limit, the others fixed: a row of `steps` samples for each of x, [n * steps,
        *shape].

        dimension: which latent of the group; of latents that are maps a channel, which is set everywhere. x: whose
        other latents are taken, the means of q(z | x); None: one row, of the means of the prior. Images are clipped.
        """
        self._check_output(output_type)
        steps, vae = check_steps(steps), self.vae
        group = self._index("group", group, vae.groups)
        dimension = self._index("dimension", dimension, vae.latent_shapes[group][0])
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < math.inf:
            raise ConfigError(f"expected a number above 0, got {shown(limit)}", argument="limit")
        if x is None:
            condition = self.condition(1, labels)
            base = self._prior_means(condition)
        else:
            base = [normal.mean for normal in self.encode(x, labels=labels)]
            condition = self.condition(len(base[0]), labels)
        values = torch.linspace(-limit, limit, steps, device=self.device, dtype=self.state_dtype)
        repeated = [z.repeat_interleave(steps, 0) for z in base]
        column = values.repeat(len(base[0])).view(-1, *[1] * (base[group].dim() - 2))
        repeated[group][:, dimension] = column
        given = [c.repeat_interleave(steps, 0) for c in condition]
        return self._shown(self.call("decode", *repeated, *given)[0], output_type)

    def verbs(self) -> dict[str, Verb]:
        """encode, decode, sample; with a likelihood elbo; with several groups of latents pinned."""
        return VAEVerbs(self).verbs()

    def request(self, /, n: int | None = None, **arguments: Any) -> VAERequest:
        """What ``sample(n, **arguments)`` would draw, with every default and random seed filled in."""
        return resolve(self.settings, self.vae, n=n, **arguments)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample: (C, H, W) or (D,)."""
        return self.vae.data_shape

    @property
    def images(self) -> bool:
        """Whether x is images in [-1, 1]."""
        return len(self.vae.data_shape) == 3

    @property
    def value_range(self) -> Range | None:
        """See ``Engine``."""
        return PICTURES if self.images else None

    @property
    def state_dtype(self) -> torch.dtype:
        """Of x, latents and likelihoods."""
        return torch.promote_types(self.dtype, torch.float32)

    def data(self, name: str, x: Any) -> Tensor:
        """`x` [n, *shape] in the state's type on the device. Raises ConfigError."""
        shape = self.vae.data_shape
        if self.vae.multiple and isinstance(x, Tensor) and x.dim() == 4:
            shape = (shape[0], *(max(self.vae.multiple, int(side)) for side in x.shape[2:]))
            if any(side % self.vae.multiple for side in x.shape[2:]):
                raise ConfigError(
                    f"expected sides that are multiples of {self.vae.multiple}, got {list(x.shape)}",
                    argument=name,
                )
        return self._floats(name, x, shape)

    def condition(self, count: int, labels: Any) -> tuple[Tensor, ...]:
        """What `count` samples are conditioned on: (labels int64 [count],) or (). Raises ConfigError."""
        self._check_alive()  # before the first tensor on the device
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        numbers = sample_labels(count, labels, self.vae.classes, self.settings.class_names, False)
        if self.vae.classes is None:
            return ()
        return (torch.tensor(numbers, dtype=torch.int64, device=self.device),)

    def _place(self, dtype: str | torch.dtype | None) -> torch.dtype:
        kept = {
            name: {key: value.clone() for key, value in part.state_dict().items()}
            for name in WIDE
            if isinstance(part := getattr(self.vae, name, None), nn.Module)
        }
        chosen = super()._place(dtype)
        for name, values in kept.items():
            part = getattr(self.vae, name).float()
            part.load_state_dict(values)
        return chosen

    def _prepare(self) -> None:
        self.fused = cast(VAE, swap(self.vae))
        if self.fused is not self.vae:
            self.fused.place = self.device, self.dtype

    def _facts(self) -> dict[str, Any]:
        said = self.vae.likelihood
        return {
            "shape": list(self.shape),
            "units": "images in [-1, 1]" if self.images else "the data's own",
            "latents": [list(shape) for shape in self.vae.latent_shapes],
            "decoder": None if said is None else type(said).__name__.lower(),
            "levels": None if said is None else said.levels,
            "bound": True,
            "classes": self.vae.classes,
            "layers": census(self.fused),
            "convolutions": convolutions(self.fused, self.device, self.dtype),
            "state": dtype_name(self.state_dtype),
        }

    def _defaults(self) -> dict[str, Any]:
        return {"temperature": self.settings.temperature}

    def running(self) -> dict[str, nn.Module]:
        return {next(iter(self.networks)): self.fused}

    def layer_checks(self, found: Mapping[str, list[Check]]) -> Iterator[Check]:
        # A layer that runs may be two of the network's: there is nothing to compare its drift with.
        return (replace(check, drift=None) for check in super().layer_checks(found))

    def rounding_off(
        self, networks: nn.ModuleDict, known: Mapping[Name, Tensor | None], generator: torch.Generator
    ) -> AbstractContextManager[None]:
        return jittering(networks, {}, self.dtype, generator)

    def _prior_means(self, condition: tuple[Tensor, ...]) -> list[Tensor]:
        """Latents [1, *shape] at the means of the prior, from the top down."""
        with self._working(), torch.inference_mode():
            return self.fused.generate(1, lambda group, prior: prior.mean, *condition)[0]

    def _latents(self, latents: Any) -> list[Tensor]:
        shapes = list(self.vae.latent_shapes)
        if isinstance(latents, Tensor) and len(shapes) == 1:
            latents = [latents]
        if self.vae.multiple and isinstance(latents, (list, tuple)) and len(latents) == len(shapes):
            for i, value in enumerate(latents):  # of images of any size
                if isinstance(value, Tensor) and value.dim() == 4:
                    shapes[i] = (shapes[i][0], *value.shape[2:])
        return self._latent_list(latents, shapes, "group")

    def _pinned(self, value: Any, group: int, count: int) -> Tensor:
        """The latents [count, *shape] of a group; zeros where they are not given."""
        shape = self.vae.latent_shapes[group]
        if value is None:
            return torch.zeros(count, *shape, dtype=self.state_dtype, device=self.device)
        z = self._floats(f"latents[{group}]", value, shape)
        if len(z) not in (1, count):
            raise ConfigError(f"expected 1 or {count} samples, got {len(z)}", argument=f"latents[{group}]")
        return z.expand(count, *shape)

    def _index(self, name: str, value: Any, count: int) -> int:
        index = as_index(value)
        if type(index) is not int or not 0 <= index < count:
            raise ConfigError(f"expected an int from 0 to {count - 1}, got {shown(value)}", argument=name)
        return index
