"""Values that people type: types of flags, and NAME=VALUE options."""

from __future__ import annotations

import argparse
import json
import typing
from typing import Any

from ..errors import ConfigError


def integers(text: str) -> tuple[int, ...]:
    """``32,64,96`` -> (32, 64, 96)."""
    try:
        return tuple(int(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 32,64,96, got {text!r}") from None


def assignments(texts: list[str], kind: type, flag: str) -> dict[str, Any]:
    """``["steps=8", "hidden=64,96"]`` as values for dataclass `kind`, whose reader checks them.

    A value is JSON, or numbers or words with commas between for a field that is a tuple. Raises ConfigError.
    """
    lists = {name for name, hint in typing.get_type_hints(kind).items() if "tuple" in str(hint)}
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{flag} {text}: expected NAME=VALUE")
        if name in values:
            raise ConfigError(f"{flag} {name}: given twice")
        values[name] = [json_or_text(v) for v in value.split(",")] if name in lists else json_or_text(value)
    return values


def json_or_text(text: str) -> Any:
    """A JSON number or boolean, else the text itself."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text
