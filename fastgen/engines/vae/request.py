"""What a caller asked of a VAE engine, checked once: settings of a checkpoint, a request for samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ...config import at_most, bounded, shown
from ...errors import ConfigError
from ...models.vae.vae import VAE
from ..arguments import SeededRequest, sample_count, sample_labels, sample_seeds

MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class VAESettings:
    """Settings of ``Spec(engine="vae")``.

    temperature: what ``sample`` uses where the caller says nothing; 1 is the model's own distribution. num_classes: of
    a class-conditional VAE, as its network has it; None says nothing. class_names: for their labels.
    """

    temperature: float = bounded(0.0, MAX_TEMPERATURE, default=1.0)
    num_classes: int | None = bounded(1, 1_000_000, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def check_network(self, network: VAE) -> None:
        """Compare with the network's classes. Raises ConfigError."""
        if self.num_classes is not None and self.num_classes != network.classes:
            raise ConfigError(
                f"is {self.num_classes}, the VAE knows {network.classes or 'no'} classes",
                argument="settings: num_classes",
            )
        if self.class_names is not None and len(self.class_names) != network.classes:
            raise ConfigError(
                f"{len(self.class_names)} for {network.classes or 'no'} classes",
                argument="settings: class_names",
            )


@dataclass(frozen=True)
class VAERequest(SeededRequest):
    """A complete request for samples: it alone repeats them on the same model, but for pinned latents.

    temperature: of each group of latents, the top one first.
    """

    temperature: tuple[float, ...]

    def _own(self) -> dict[str, Any]:
        return {"temperature": list(self.temperature)}


def resolve(
    settings: VAESettings,
    network: VAE,
    *,
    n: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    labels: Any = None,
    temperature: float | Sequence[float] | None = None,
) -> VAERequest:
    """Check the arguments of ``sample``. Raises ConfigError or ArgumentError."""
    count = sample_count(n, seeds, labels)
    return VAERequest(
        sample_seeds(count, seed, seeds),
        sample_labels(count, labels, network.classes, settings.class_names, False),
        _temperatures(settings.temperature if temperature is None else temperature, network.groups),
    )


def _temperatures(given: Any, groups: int) -> tuple[float, ...]:
    values: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given] * groups
    if len(values) != groups:
        raise ConfigError(
            f"expected a number, or a list of one for each of {groups} groups of latents, got {shown(given)}",
            argument="temperature",
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= MAX_TEMPERATURE:
            raise ConfigError(
                f"expected numbers from 0 to {MAX_TEMPERATURE:g}, got {shown(given)}", argument="temperature"
            )
    return tuple(float(value) for value in values)


def pinned_groups(network: VAE, latents: Any) -> Mapping[int, Any]:
    """`latents`, which a caller pins, by group. Raises ConfigError for a group that is not there."""
    if latents is None:
        return {}
    if not isinstance(latents, Mapping) or any(
        type(group) is not int or not 0 <= group < network.groups for group in latents
    ):
        raise ConfigError(
            f"expected tensors by group, {{0: z}}, groups 0 to {network.groups - 1}, got {shown(latents)}",
            argument="latents",
        )
    return latents
