"""Arguments that several verbs take, checked: how many samples, their seeds, their labels."""

from __future__ import annotations

import dataclasses
import inspect
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..config import shown
from ..errors import ArgumentError, ConfigError

MAX_SEED = (1 << 64) - 1
MAX_COUNT = 1_000_000  # of samples per call, which holds all of them


@dataclass(frozen=True)
class SeededRequest:
    """A complete request for samples: one seed and one label (None: no label) per sample.

    A subclass adds what else an engine is asked for, the same for all samples.
    """

    seeds: tuple[int, ...]
    labels: tuple[int | None, ...]

    def part(self, start: int, stop: int) -> Self:
        """The request for the samples from `start` to before `stop`."""
        return dataclasses.replace(self, seeds=self.seeds[start:stop], labels=self.labels[start:stop])

    def only(self, sample: int) -> Self:
        """The request for one of the samples."""
        return self.part(sample, sample + 1)

    def to_dict(self) -> dict[str, Any]:
        """The keyword arguments of ``sample`` that repeat it, as JSON types."""
        return {"seeds": list(self.seeds), "labels": list(self.labels), **self._own()}

    def _own(self) -> dict[str, Any]:
        """What a subclass adds."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("seeds", "labels")]
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        own = self._own().items()
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in own
        )


def sample_count(n: Any, seeds: Any, labels: Any) -> int:
    """How many samples: `n`, or as many as there are seeds or labels, or 1. Raises ConfigError."""
    if n is not None:
        count = as_index(n)
        if type(count) is not int or not 1 <= count <= MAX_COUNT:
            raise ConfigError(f"expected an int from 1 to {MAX_COUNT}, got {n!r}", argument="n")
        return count
    if seeds is not None:
        return len(_list("seeds", seeds))
    return 1 if labels is None or _single(labels) else len(_list("labels", labels))


def sample_seeds(count: int, seed: Any, seeds: Any) -> tuple[int, ...]:
    """One seed per sample: `seeds`, or `seed` and those after it, or random ones. Raises ConfigError, ArgumentError."""
    if seed is not None and seeds is not None:
        raise ArgumentError("give one of them", argument="seed, seeds")
    if seeds is None:
        # 53 bits survive every JSON reader
        first = secrets.randbits(53) if seed is None else _seed("seed", seed)
        seeds = range(first, first + count)
    given = _list("seeds", seeds)
    if len(given) != count or count == 0:
        raise ConfigError(f"expected {count or 'at least 1'}, got {len(given)}", argument="seeds")
    return tuple(_seed("seeds", s) for s in given)


def _seed(name: str, seed: Any) -> int:
    value = as_index(seed)
    if type(value) is not int or not 0 <= value <= MAX_SEED:
        raise ConfigError(f"expected integers from 0 to 2^64 - 1, got {seed!r}", argument=name)
    return value


def check_known(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise ArgumentError for names of keyword arguments that are not `known`. what: says in words who takes those."""
    known = list(known)
    if unknown := sorted(set(given) - set(known)):
        raise ArgumentError(f"unknown argument; {what} {', '.join(known)}", argument=", ".join(unknown))


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters but ``**options``."""
    every = inspect.signature(function).parameters.values()
    return [p.name for p in every if p.kind is not p.VAR_KEYWORD]


def as_index(value: Any) -> Any:
    """NumPy's and torch's integers as Python's; anything else as it is, for the caller to refuse."""
    if isinstance(value, bool):
        return value
    try:
        return value.__index__()
    except (AttributeError, TypeError, ValueError):
        return value


def _list(name: str, values: Any) -> list:
    try:
        return list(values)
    except TypeError:
        raise ConfigError(f"expected a list, got {values!r}", argument=name) from None


def _single(label: Any) -> bool:
    """Whether this is one label, for all samples."""
    return isinstance(label, (str, bool, float)) or type(as_index(label)) is int


def sample_labels(
    count: int, labels: Any, classes: int | None, names: Sequence[str] | None, unlabelled: bool
) -> tuple[int | None, ...]:
    """One label per sample, from 0 to classes - 1; None for all where there are no classes. Raises ConfigError.

    names: of the classes, which may stand for their numbers, see :func:`class_number`. unlabelled: whether None is one.
    """
    given = [labels] * count if labels is None or _single(labels) else _list("labels", labels)
    if len(given) != count:
        raise ConfigError(f"expected one, or one per sample ({count}), got {len(given)}", argument="labels")
    if classes is None:
        if any(label is not None for label in given):
            raise ConfigError("this model has no classes", argument="labels")
        return (None,) * count
    if not unlabelled and any(label is None for label in given):
        raise ConfigError(f"this model needs one per sample, from 0 to {classes - 1}", argument="labels")
    return tuple(None if label is None else class_number(label, classes, names) for label in given)


def class_number(label: Any, classes: int, names: Sequence[str] | None) -> int:
    """The number of a class, 0 to classes - 1, by the one rule for labels everywhere. Raises ConfigError.

    An integer is the number. A string is a name, exactly; where it is none and no class is named by digits, it may be
    the number in digits. names: of the classes, if they have any.
    """
    names = names or ()
    if isinstance(label, str):
        found = [number for number, name in enumerate(names) if name == label]
        if len(found) > 1:
            raise ConfigError(
                f"{len(found)} classes are named {shown(label)}; give its number as an integer, one of "
                f"{', '.join(map(str, found))}",
                argument="labels",
            )
        if found:
            return found[0]
        if _is_number(label) and any(map(_is_number, names)):
            raise ConfigError(
                f"no class is named {label}, and it is not taken for a number, since there are names made of digits: "
                f"{_some(names)}",
                argument="labels",
            )
    number = int(label) if isinstance(label, str) and _is_number(label) else as_index(label)
    if type(number) is not int or not 0 <= number < classes:
        by_name = f" or one of {_some(names)}" if names else ""
        raise ConfigError(
            f"expected numbers from 0 to {classes - 1}{by_name}, got {label!r}", argument="labels"
        )
    return number


def written_labels(text: str, names: Sequence[str] | None) -> list[str]:
    """Labels as a command line has them, "0-9", "3,7" or "ant,bee", one by one. Raises ConfigError for too many.

    A piece that is the name of a class is one label, also if it looks like a range or has a comma in it.
    """
    if names and text in names:
        return [text]
    labels: list[str] = []
    for piece in map(str.strip, text.split(",")):
        first, dash, last = piece.partition("-")
        if piece in (names or ()) or not (dash and _is_number(first) and _is_number(last)):
            labels.append(piece)
            continue
        low, high = int(first), int(last)
        if not 0 <= high - low < MAX_COUNT - len(labels):
            raise ConfigError(
                f"{shown(piece)} is no range from low to high (at most {MAX_COUNT} in all)", argument="labels"
            )
        labels += map(str, range(low, high + 1))
    return labels


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
