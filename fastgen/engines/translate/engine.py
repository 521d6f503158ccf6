"""The verbs of an image translation model: translate, score, best_of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgen_kernels import signed_seeds

from ...checkpoint import Spec
from ...config import shown
from ...errors import ConfigError
from ...fused.translate import fast
from ...images import PICTURES, Range, to_output
from ...runtime.capture import plainly
from ..arguments import as_index, sample_seeds
from ..base import Engine
from ..finished import check_finite
from ..layers import Name
from ..verb import Verb
from .images import by_size, checked, padded_side
from .settings import TranslateSettings, check_mode
from .verbs import generator_verbs, score_verb
from .verification import rounding_off

PARTS = ("generator", "discriminator")
MAX_TRIES = 10_000  # of `best_of`, for an image


@dataclass(frozen=True)
class Best:
    """What `best_of` found.

    images: the best translation of each image, as `translate` returns them. seeds: of each image all that were tried,
    the best first; `translate` makes the others again. scores: float32 [images, tries] on the CPU, in that order: the
    discriminator's mean logits, higher where it takes a translation for a real image.
    """

    images: Any
    seeds: list[list[int]]
    scores: Tensor


class TranslateEngine(Engine):
    """Images to images, and how real they look. Made by :func:`fastgen.load`. Threads and forks: see ``Engine``.

    A model has a generator, a discriminator, or both. Images are float32 in [-1, 1], [n, C, H, W] or a list of
    [C, H, W] of unlike sizes, of any size: what a network cannot take is reflected at the right and at the bottom, and
    cut off afterwards.
    """

    kind = "translate"
    operation = "patch_conv"
    settings_type = TranslateSettings
    settings: TranslateSettings

    def __init__(
        self,
        networks: Mapping[str, nn.Module] | nn.ModuleDict,
        settings: TranslateSettings | None = None,
        *,
        norm_mode: str | None = None,
        dropout: bool | None = None,
        **options: Any,
    ) -> None:
        """networks: "generator" and "discriminator", or one of them. norm_mode, dropout: in place of the settings'.

        options: see ``Engine``. Raises ConfigError.
        """
        settings = settings or TranslateSettings()
        if not networks or not set(networks.keys()) <= set(PARTS):
            raise ConfigError(
                f"expected {' and '.join(PARTS)}, or one of them, got {', '.join(networks.keys()) or 'none'}",
                argument="networks",
            )
        if norm_mode is not None and check_mode(norm_mode) == "batch":
            raise ConfigError(
                "batch is for one call, whose images then depend on each other: give it to translate or score",
                argument="norm_mode",
            )
        self.norm_mode = settings.norm_mode if norm_mode is None else norm_mode
        self.dropout = _flag("dropout", dropout, settings.dropout)
        self._fast: dict[tuple[str, str], nn.Module | None] = {}
        super().__init__(networks, settings, **options)

    @classmethod
    def check_parts(cls, spec: Spec) -> None:
        """See ``Engine``."""
        if not spec.parts or not set(spec.parts) <= set(PARTS):
            raise ConfigError(
                f"a translate model has a generator, a discriminator or both, this one has {', '.join(spec.parts)}",
                argument="parts",
            )

    @property
    def value_range(self) -> Range | None:
        """See ``Engine``."""
        return PICTURES

    @property
    def in_channels(self) -> int:
        """Of the images that `translate` takes. Raises ConfigError for a model without a generator."""
        return int(self._generator().config.in_channels)

    @property
    def has_dropout(self) -> bool:
        """Whether the generator has dropout layers, so that seeds make a difference."""
        return "generator" in self.networks and bool(self._generator().config.dropout)

    def translate(
        self,
        images: Tensor | Sequence[Tensor],
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        dropout: bool | None = None,
        norm_mode: str | None = None,
        output_type: str = "pt",
    ) -> Any:
        """What the generator makes of `images`: float32 [n, C, H, W] on the engine's device, or a list of [C, H, W].

        images: see ``TranslateEngine``. Results have their sizes, and are a list where they were.
        seed: of dropout: image k has seed + k, in [0, 2^64); seeds: one per image. Neither: seeds from the system's
            entropy. An image's masks depend on its seed and size, not on the images beside it.
        dropout: masks by seeds (True), or none (False); None: as the settings say, and True where seeds are given.
        norm_mode: "instance", "running", or "batch": the statistics of all `images` together, as the original project's
            test script has them for its batch, by the reference network in plain PyTorch.
        output_type: "pt"; "np", [n, H, W, C] in [0, 1], or "pil": of a list, lists.

        Raises ConfigError (a ValueError) that names the argument, ArgumentError (a TypeError) for both seed and seeds.
        """
        to_output(None, output_type)
        given, listed = checked("images", images, self.in_channels)
        mode = self.norm_mode if norm_mode is None else check_mode(norm_mode)
        numbers = self._seeds(len(given), seed, seeds, dropout)
        made = self._translate(given, numbers, mode)
        check_finite(made, "images", "translated")
        return _as_given(made, listed, output_type)

    def score(
        self,
        x: Tensor | Sequence[Tensor] | None,
        y: Tensor | Sequence[Tensor],
        *,
        norm_mode: str | None = None,
    ) -> Tensor:
        """How real the discriminator finds each y as a translation of x: float32 [n], the mean logit of its patches.

        x, y: images of the same sizes; x is None for a discriminator that sees y alone. norm_mode: as for `translate`.
        Raises ConfigError.
        """
        discriminator: Any = self._part("discriminator")
        config = discriminator.config
        kinds = [checked("y", y, config.out_channels)[0]]
        if config.in_channels:
            kinds.insert(0, checked("x", x, config.in_channels)[0])
            if [a.shape[1:] for a in kinds[0]] != [b.shape[1:] for b in kinds[1]]:
                raise ConfigError("expected as many images as x, of the same sizes", argument="y")
        elif x is not None:
            raise ConfigError("this discriminator sees y alone: give None", argument="x")
        mode = self.norm_mode if norm_mode is None else check_mode(norm_mode)
        return torch.stack(self._score(kinds, mode))

    def best_of(
        self,
        images: Tensor | Sequence[Tensor],
        n: int,
        *,
        seed: int | None = None,
        norm_mode: str | None = None,
        output_type: str = "pt",
    ) -> Best:
        """Of `n` translations of each image with dropout the one that the discriminator finds most real.

        Every image tries the seeds seed, seed + 1, ..., seed + n - 1; without `seed` some from the system's entropy.
        norm_mode: "instance" or "running". Raises ConfigError where the generator has no dropout, or the model no
        discriminator.
        """
        to_output(None, output_type)
        count = as_index(n)
        if type(count) is not int or not 1 <= count <= MAX_TRIES:
            raise ConfigError(f"expected an int from 1 to {MAX_TRIES}, got {shown(n)}", argument="n")
        if not bool(self._generator().config.dropout):
            raise ConfigError(
                "its generator has no dropout: all translations of an image are the same",
                argument="generator",
            )
        mode = self.norm_mode if norm_mode is None else check_mode(norm_mode)
        if mode == "batch":
            raise ConfigError("expected instance or running: tries are independent", argument="norm_mode")
        sees_x = bool(self._part("discriminator").config.in_channels)
        given, listed = checked("images", images, self.in_channels)
        numbers = sample_seeds(count, seed, None)
        best, seeds, scores = [], [], []
        at_once = self.batches.max_batch
        for i, image in enumerate(given):
            found, kept = [], []  # scores of all tries, and the best image of each turn
            for start in range(0, count, at_once):
                own = numbers[start : start + at_once]
                tries = [image] * len(own)
                made = self._translate(tries, own, mode)
                check_finite(made, "images", "translated", lambda _, i=i: i)  # type: ignore[misc]
                found.append(torch.stack(self._score([tries, made] if sees_x else [made], mode)).cpu())
                kept.append(made[int(found[-1].argmax())])
            score = torch.cat(found)
            order = score.argsort(descending=True, stable=True)
            best.append(kept[int(order[0]) // at_once])
            seeds.append([numbers[k] for k in order.tolist()])
            scores.append(score[order])
        return Best(_as_given(best, listed, output_type), seeds, torch.stack(scores))

    def verbs(self) -> dict[str, Verb]:
        """translate, translate_dropout where the generator has dropout, and score: of the parts that there are."""
        return self._verbs_of(self.norm_mode)

    def run(self, part: str, norm_mode: str, *given: Tensor | None) -> Tensor:
        """A network's fast form on tensors of the engine's type; of one that has none, or has hooks, the reference.

        Of a discriminator: the scores.
        """
        key = part, norm_mode
        if key not in self._fast:
            self._fast[key] = fast(self.networks[part], norm_mode)
        twin = self._fast[key]
        if twin is not None:
            made: Tensor = twin(*given)
            return made
        network: Any = self.networks[part]
        if part == "generator":
            return network(*given, norm_mode)
        logits = network(given[0] if len(given) == 2 else None, given[-1], norm_mode)
        return logits.mean((1, 2, 3), dtype=torch.promote_types(logits.dtype, torch.float32))

    def running(self) -> dict[str, nn.Module]:
        """See ``Engine``."""
        return {part: self._fast.get((part, self.norm_mode)) or net for part, net in self.networks.items()}

    def rounding_off(
        self, networks: nn.ModuleDict, known: Mapping[Name, Tensor | None], generator: torch.Generator
    ) -> AbstractContextManager[None]:
        """See ``Engine``."""
        return rounding_off(networks, known, self.dtype, self.norm_mode, generator)

    def _verbs_of(self, norm_mode: str) -> dict[str, Verb]:
        made: dict[str, Verb] = {}
        if "generator" in self.networks:
            made |= generator_verbs(self, self.networks["generator"], norm_mode)
        if "discriminator" in self.networks:
            made["score"] = score_verb(self, self.networks["discriminator"], norm_mode)
        return made

    def _prepare(self) -> None:
        self._fast = {
            (part, self.norm_mode): fast(net, self.norm_mode) for part, net in self.networks.items()
        }

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for part, network in self.networks.items():
            config: Any = network.config
            facts[part] = {
                "in_channels": config.in_channels,
                "out_channels": config.out_channels,
                "norm": config.norm,
                "fused": self._fast.get((part, self.norm_mode)) is not None,
            }
        if "generator" in self.networks:
            generator = self._generator()
            facts["sides"] = {"multiple": generator.multiple, "least": generator.least}
            facts["dropout"] = self.has_dropout
        return facts

    def _defaults(self) -> dict[str, Any]:
        return {"norm_mode": self.norm_mode, "dropout": self.dropout and self.has_dropout}

    def _part(self, name: str) -> Any:
        if name not in self.networks:
            raise ConfigError(
                f"this model has none, only a {' and a '.join(self.networks)}: it was saved without",
                argument=name,
            )
        return self.networks[name]

    def _generator(self) -> Any:
        return self._part("generator")

    def _seeds(self, count: int, seed: Any, seeds: Any, dropout: Any) -> tuple[int, ...] | None:
        """One per image, or None for no dropout. Raises ConfigError or ArgumentError."""
        asked = seed is not None or seeds is not None
        wanted = _flag("dropout", dropout, asked or (self.dropout and self.has_dropout))
        if not wanted and not asked:
            return None
        if not self.has_dropout:
            name = "dropout" if dropout else "seed" if seeds is None else "seeds"
            raise ConfigError(
                "its generator has no dropout layers, and nothing else is random", argument=name
            )
        if not wanted:
            raise ConfigError("is False, and seeds are of dropout alone: leave one out", argument="dropout")
        return sample_seeds(count, seed, seeds)

    def _translate(self, images: list[Tensor], seeds: tuple[int, ...] | None, mode: str) -> list[Tensor]:
        """Each in its own size. Raises ConfigError."""
        self._check_alive()
        generator = self._generator()
        numbers = None if seeds is None else signed_seeds(seeds).to(self.device)

        def size(height: int, width: int) -> tuple[int, int]:
            multiple, least = generator.multiple, generator.least
            return padded_side(height, multiple, least), padded_side(width, multiple, least)

        def run(members: list[int], x: Tensor) -> Tensor:
            own = () if numbers is None else (numbers[members],)
            return self._in_mode("translate" if numbers is None else "translate_dropout", mode, x, *own)

        if mode == "batch":
            self._check_together(images, size, "images")
        made = by_size([images], size, run, self.device)
        return [y[:, : x.shape[1], : x.shape[2]] for x, y in zip(images, made, strict=True)]

    def _score(self, kinds: list[list[Tensor]], mode: str) -> list[Tensor]:
        self._check_alive()
        least = self._part("discriminator").least

        def size(height: int, width: int) -> tuple[int, int]:
            return max(height, least), max(width, least)

        if mode == "batch":
            self._check_together(kinds[0], size, "y")
        scores = by_size(
            kinds, size, lambda members, *images: self._in_mode("score", mode, *images), self.device
        )
        failed = [i for i, fine in enumerate(torch.stack(scores).isfinite().tolist()) if not fine]
        if failed:
            raise ConfigError(
                f"the score of image {failed[0]} is not finite: are its values, and those of x, finite and in [-1, 1]? "
                "engine.verify() looks at the network",
                argument="y",
            )
        return scores

    def _in_mode(self, name: str, mode: str, *tensors: Tensor) -> Tensor:
        """A verb's result in a mode of norms."""
        if mode == self.norm_mode:
            return self.call(name, *tensors)[0]
        with self._working():
            verb = self._verbs_of(mode)[name]
            if mode != "batch":
                return self.batches(f"{name} {mode}", verb.fast, *tensors)[0]
            return self._together(verb, *tensors)

    @plainly
    def _together(self, verb: Verb, *tensors: Tensor) -> Tensor:
        """By the reference network, in one batch, uncaptured: a capture works on a batch of another size."""
        return verb.plain(self.networks, *tensors)[0].float()

    def _check_together(self, images: list[Tensor], size: Any, name: str) -> None:
        """Raise ConfigError where `images` cannot be one batch."""
        if len(images) > self.batches.max_batch:
            raise ConfigError(
                f"{len(images)} images are more than max_batch = {self.batches.max_batch}, and the statistics of a "
                "batch cannot be taken in parts: give fewer, or load with a larger max_batch",
                argument=name,
            )
        if len({size(*image.shape[1:]) for image in images}) > 1:
            raise ConfigError(
                "images of unlike sizes are not one batch, whose statistics were asked for", argument=name
            )


def _as_given(images: list[Tensor], listed: bool, output_type: str) -> Any:
    """As `translate` returns them."""
    if not listed:
        return to_output(torch.stack(images), output_type)
    return images if output_type == "pt" else [to_output(image[None], output_type)[0] for image in images]


def _flag(name: str, value: Any, default: bool) -> bool:
    """True, False, or None for the default. Raises ConfigError."""
    if value is None:
        return default
    if type(value) is not bool:
        raise ConfigError(f"expected True, False or None, got {shown(value)}", argument=name)
    return value
