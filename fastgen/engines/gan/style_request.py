"""What a caller asked of a style-based GAN's engine, checked once: settings of a checkpoint, a request for samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Self

import numpy as np
from torch import Tensor

from ...config import bounded, one_of, shown
from ...errors import ConfigError
from ..arguments import SeededRequest, as_index, check_known, sample_count, sample_labels, sample_seeds
from .request import LabelSettings

NOISE_MODES = ("const", "random", "none")
MAX_PSI = 10.0
MAX_STYLES = 1000
KNOWN = ("n", "seed", "seeds", "labels", "truncation_psi", "truncation_cutoff", "noise_mode")
Psi = float | tuple[float, ...]


@dataclass(frozen=True)
class StyleGANSettings(LabelSettings):
    """Settings of ``Spec(engine="gan")`` whose generator is style-based: what verbs use by default.

    truncation_psi: see ``StyleGANEngine.sample``; 1 leaves styles as they are. truncation_cutoff: of how many styles
    from the first it is; None: of all. noise_mode: one of `NOISE_MODES`.
    """

    truncation_psi: float = bounded(-MAX_PSI, MAX_PSI, default=1.0)
    truncation_cutoff: int | None = bounded(0, MAX_STYLES, default=None)
    noise_mode: str = one_of(*NOISE_MODES, default="const")

    def check_styles(self, count: int) -> None:
        """Compare with how many styles the generator takes. Raises ConfigError."""
        if self.truncation_cutoff is not None and self.truncation_cutoff > count:
            raise ConfigError(
                f"is {self.truncation_cutoff}, the generator takes {count} styles",
                argument="settings: truncation_cutoff",
            )


@dataclass(frozen=True)
class StyleGANRequest(SeededRequest):
    """A complete request for samples: it alone repeats them on the same model.

    truncation_psi: one for all samples, or one per sample. truncation_cutoff: None for all styles.
    """

    truncation_psi: Psi
    truncation_cutoff: int | None
    noise_mode: str

    @property
    def psis(self) -> tuple[float, ...]:
        """One per sample."""
        psi = self.truncation_psi
        return psi if isinstance(psi, tuple) else (psi,) * len(self.seeds)

    def part(self, start: int, stop: int) -> Self:
        """See ``SeededRequest``."""
        return replace(super().part(start, stop), truncation_psi=_shortest(self.psis[start:stop]))

    def _own(self) -> dict[str, Any]:
        psi = self.truncation_psi
        return {**super()._own(), "truncation_psi": list(psi) if isinstance(psi, tuple) else psi}

    def __str__(self) -> str:
        low, high = min(self.psis), max(self.psis)
        psi = f"truncation_psi {low:g}" + (f" to {high:g}" if high > low else "")
        cutoff = "" if self.truncation_cutoff is None else f" of the first {self.truncation_cutoff} styles"
        return f"{psi}{cutoff}, noise_mode {self.noise_mode}"


def resolve(
    settings: StyleGANSettings,
    classes: int | None,
    styles: int,
    *,
    n: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    labels: Any = None,
    truncation_psi: Any = ...,
    truncation_cutoff: Any = ...,
    noise_mode: Any = None,
    **unknown: Any,
) -> StyleGANRequest:
    """Check the arguments of ``sample``; ``...`` is the model's own truncation. Raises ConfigError or ArgumentError.

    styles: how many the generator takes.
    """
    check_known(unknown, KNOWN, "this generator is style-based, and takes")
    psi = settings.truncation_psi if truncation_psi is ... else truncation_psi
    several = _several(psi)
    if n is None and seeds is None and several is not None and sample_count(None, None, labels) == 1:
        n = len(several)
    count = sample_count(n, seeds, labels)
    return StyleGANRequest(
        sample_seeds(count, seed, seeds),
        sample_labels(count, labels, classes, settings.class_names, False),
        checked_psi(psi, count),
        checked_cutoff(settings.truncation_cutoff if truncation_cutoff is ... else truncation_cutoff, styles),
        checked_noise(settings.noise_mode if noise_mode is None else noise_mode),
    )


def checked_psi(psi: Any, count: int) -> Psi:
    """`psi`, a number, None for 1, or a list of such for each of `count` samples. Raises ConfigError."""
    if isinstance(psi, (np.ndarray, Tensor)) and psi.ndim == 0:
        psi = psi.item()
    several = _several(psi)
    if several is not None and len(several) != count:
        raise ConfigError(
            f"expected one number, or one per sample ({count}), got {len(several)}", argument="truncation_psi"
        )
    values = [psi] if several is None else several
    for value in values:
        real = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (real and math.isfinite(value) and abs(value) <= MAX_PSI):
            raise ConfigError(
                f"expected numbers from {-MAX_PSI:g} to {MAX_PSI:g}, or None, got {shown(value)}",
                argument="truncation_psi",
            )
    return _shortest(tuple(1.0 if value is None else float(value) for value in values))


def checked_cutoff(cutoff: Any, styles: int) -> int | None:
    """How many styles from the first are truncated, None for all. Raises ConfigError."""
    if cutoff is None:
        return None
    found = as_index(cutoff)
    if type(found) is not int or not 0 <= found <= styles:
        raise ConfigError(
            f"expected an int from 0 to {styles}, the styles that this generator takes, or None, got {shown(cutoff)}",
            argument="truncation_cutoff",
        )
    return found


def checked_noise(mode: Any) -> str:
    """One of `NOISE_MODES`. Raises ConfigError."""
    if not isinstance(mode, str) or mode not in NOISE_MODES:
        raise ConfigError(
            f"expected one of {', '.join(NOISE_MODES)}, got {shown(mode)}", argument="noise_mode"
        )
    return mode


def checked_layers(layers: Any, styles: int) -> list[int]:
    """The numbers of styles, from 0, each once. Raises ConfigError."""
    try:
        found = [as_index(layer) for layer in layers]
    except TypeError:
        found = [None]
    if not all(type(layer) is int and 0 <= layer < styles for layer in found) or isinstance(layers, str):
        raise ConfigError(
            f"expected a list of styles, ints from 0 to {styles - 1}, got {shown(layers)}", argument="layers"
        )
    return sorted(set(found))


def _several(psi: Any) -> list[Any] | None:
    """The numbers of a list or an array, None for anything else."""
    if isinstance(psi, (np.ndarray, Tensor)):
        psi = psi.tolist()
    return list(psi) if isinstance(psi, (list, tuple)) else None


def _shortest(psis: tuple[float, ...]) -> Psi:
    """The number that they all are, or they themselves."""
    return psis[0] if len(set(psis)) == 1 else psis
