"""What flags say as text, read: one value or several, numbers, pairs, NAME=VALUE. Importing it needs no PyTorch."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..config import parse_json, shown
from ..errors import ConfigError


def in_turn(text: str | None, count: int, read: Callable[[str], Any], flag: str) -> Any:
    """One value for all samples; where there are commas, a list of `count` values: those given, repeated.

    Raises ConfigError about `flag` for more values than samples.
    """
    if text is None or "," not in text:
        return None if text is None else read(text.strip())
    values = [read(part.strip()) for part in text.split(",")]
    if len(values) > count:
        raise ConfigError(f"{len(values)} values for {count}", argument=flag)
    return [values[i % len(values)] for i in range(count)]


def whole_number(flag: str) -> Callable[[str], int]:
    """A reader of whole numbers, which raises ConfigError about `flag`."""
    return lambda text: _number(flag, int, text)


def number(flag: str) -> Callable[[str], float]:
    """A reader of numbers, which raises ConfigError about `flag`."""
    return lambda text: _number(flag, float, text)


def numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    """``0.2,0.8`` -> (0.2, 0.8). Raises ConfigError about `flag`."""
    return None if text is None else tuple(map(number(flag), text.split(",")))


def named_values(texts: Sequence[str], flag: str, lists: Collection[str] = ()) -> dict[str, Any]:
    """``["steps=8", "name=text"]`` -> {"steps": 8, "name": "text"}; the values of `lists` have commas between them.

    Raises ConfigError about `flag`, also for a name that is given twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"expected NAME=VALUE, got {shown(text)}", argument=flag)
        if name in values:
            raise ConfigError(f"{name} is given twice", argument=flag)
        values[name] = [json_or_text(v) for v in value.split(",")] if name in lists else json_or_text(value)
    return values


def integers(text: str) -> tuple[int, ...]:
    """``32,64,96`` -> (32, 64, 96), for argparse."""
    try:
        return tuple(int(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 32,64,96, got {text!r}") from None


def assignments(texts: list[str], kind: type, flag: str) -> dict[str, Any]:
    """``["steps=8", "hidden=64,96"]`` as values for dataclass `kind`, whose reader checks them.

    A value is JSON, or numbers or words with commas between for a field that is a tuple. Raises ConfigError.
    """
    lists = {name for name, hint in typing.get_type_hints(kind).items() if "tuple" in str(hint)}
    return named_values(texts, flag, lists)


def json_or_text(text: str) -> Any:
    """A value in JSON (also True and False, as Python writes them), else the text itself."""
    try:
        return parse_json(text.lower() if text.lower() in ("true", "false") else text, "value")
    except ConfigError:
        return text


def _number(flag: str, kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(f"expected {expected}, got {shown(text)}", argument=flag) from None
