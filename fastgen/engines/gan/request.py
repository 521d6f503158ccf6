"""What a caller asked of a GAN engine, checked once: settings of a checkpoint, a request for samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ...config import at_most, bounded, one_of, shown
from ...errors import ConfigError
from ..arguments import SeededRequest, check_known, sample_count, sample_labels, sample_seeds

LAWS = ("rescale", "clip")
RESCALED = 2.0  # where "rescale" cuts normals off, before it scales them
MAX_TRUNCATION = 10.0
KNOWN = ("n", "seed", "seeds", "labels", "truncation", "truncation_law")


@dataclass(frozen=True)
class LabelSettings:
    """What settings of every kind of GAN say of labels.

    num_classes: of a class-conditional generator, as its network has it; None says nothing. class_names: of its labels.
    """

    num_classes: int | None = bounded(1, 1_000_000, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def check_classes(self, classes: int | None) -> None:
        """Compare with the generator's. Raises ConfigError."""
        if self.num_classes is not None and self.num_classes != classes:
            raise ConfigError(
                f"is {self.num_classes}, the generator knows {classes or 'no'} classes",
                argument="settings: num_classes",
            )
        if self.class_names is not None and len(self.class_names) != classes:
            raise ConfigError(
                f"{len(self.class_names)} for {classes or 'no'} classes", argument="settings: class_names"
            )


@dataclass(frozen=True)
class GANSettings(LabelSettings):
    """Settings of ``Spec(engine="gan")``, but for style-based generators: see ``StyleGANSettings``.

    truncation, truncation_law: what ``sample`` uses where the caller says nothing; None draws whole normals.
    """

    truncation: float | None = bounded(1e-6, MAX_TRUNCATION, default=None)
    truncation_law: str = one_of(*LAWS, default="rescale")


@dataclass(frozen=True)
class GANRequest(SeededRequest):
    """A complete request for samples: it alone repeats them on the same model."""

    truncation: float | None
    truncation_law: str

    @property
    def factor(self) -> float:
        """Of the latents, once they are drawn."""
        rescaled = self.truncation is not None and self.truncation_law == "rescale"
        return float(self.truncation) if rescaled else 1.0  # type: ignore[arg-type]

    @property
    def bound(self) -> float:
        """Where normals are cut off, before they are scaled."""
        if self.truncation is None:
            return math.inf
        return RESCALED if self.truncation_law == "rescale" else self.truncation

    @property
    def level(self) -> float:
        """The truncation whose standing statistics are looked up, at most 1."""
        return 1.0 if self.truncation is None else min(self.truncation, 1.0)


def resolve(
    settings: GANSettings,
    classes: int | None,
    *,
    n: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    labels: Any = None,
    truncation: Any = ...,
    truncation_law: Any = None,
    **unknown: Any,
) -> GANRequest:
    """Check the arguments of ``sample``; ``...`` is the model's own truncation. Raises ConfigError or ArgumentError."""
    check_known(unknown, KNOWN, "this generator has no styles, and takes")
    count = sample_count(n, seeds, labels)
    chosen = settings.truncation if truncation is ... else truncation
    real = isinstance(chosen, Real) and not isinstance(chosen, bool)
    if chosen is not None and not (real and 0 < chosen <= MAX_TRUNCATION):
        raise ConfigError(
            f"expected a number above 0, at most {MAX_TRUNCATION:g}, or None, got {shown(chosen)}",
            argument="truncation",
        )
    law = settings.truncation_law if truncation_law is None else truncation_law
    if law not in LAWS:
        raise ConfigError(f"expected one of {', '.join(LAWS)}, got {shown(law)}", argument="truncation_law")
    return GANRequest(
        sample_seeds(count, seed, seeds),
        sample_labels(count, labels, classes, settings.class_names, False),
        None if chosen is None else float(chosen),
        law,
    )
