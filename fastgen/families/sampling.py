"""What ``fastgen sample`` must know of a family. Importing it needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .family import Flag

# For a family that has it, ``engine.draw`` takes ``callback=`` (see ``DiffusionEngine.sample``) and ``progress=``, and
# the requests have ``evaluations()``, how many steps each sample takes.
GIF = Flag("--gif", {"type": Path, "metavar": "FILE", "help": "also write an animation of the denoising"})


def _as_given(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    return dict(given)


def _none(of: Any) -> None:
    return None


def _fits(engine: Any, request: Any, form: str) -> None:
    return None


@dataclass(frozen=True)
class Sampling:
    """How a command draws from a family's engines, which have `shape`, `request`, `draw` and `metadata`.

    An engine's `shape` decides what can be written: (D,) rows of numbers, (1 or 3, H, W) images, float in [-1, 1];
    arrays of numbers in any shape.

    arguments: (values of the family's flags that were given, by `Flag.dest`, without `GIF`; count of samples) ->
        keyword arguments of ``engine.request`` beside n, seed, seeds and labels. Raises ConfigError.
    kept: keys that a request kept in an image must have. may_keep: () -> other keys that it may have.
    labels: engine -> labels to draw in turn where the user gives none; None: samples without a label.
    class_names: engine -> names of the classes, None where they have none.
    check: (engine, request, form) -> None. Raises ConfigError where the command cannot draw the request in this form:
        "sheet"; "images", each a file of its own; "table", of rows; "numbers", as they are.
    variant: engine -> how the command draws from it where that differs from the family's other engines, else None.
    """

    arguments: Callable[[Mapping[str, Any], int], dict[str, Any]] = _as_given
    kept: Collection[str] = ("seeds", "labels")
    may_keep: Callable[[], Collection[str]] = tuple
    labels: Callable[[Any], Sequence[int] | None] = _none
    class_names: Callable[[Any], Sequence[str] | None] = _none
    check: Callable[[Any, Any, str], None] = _fits
    variant: Callable[[Any], Sampling | None] = _none

    def of(self, engine: Any) -> Sampling:
        """How the command draws from this engine."""
        return self.variant(engine) or self
