"""Dataclasses from untrusted JSON, strictly: unknown, missing, wrongly typed or absurd values are errors.

A field may carry bounds or choices in its metadata: ``bounded(1, 4096, default=32)``, ``one_of("silu")``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")

MAX_DEPTH = 32  # of nested JSON: far more than any file of ours has, far less than the interpreter can follow
MAX_NAME = 256  # characters of a name that is shown to people: a folder's is no longer


def bounded(low: float, high: float, default: Any = dataclasses.MISSING, max_items: int = 16) -> Any:
    """A number, or a tuple of at most `max_items` numbers, each within [low, high]."""
    metadata = {"low": low, "high": high, "max_items": max_items}
    return dataclasses.field(default=default, metadata=metadata)


def at_most(max_items: int, default: Any = dataclasses.MISSING) -> Any:
    """A tuple of at most `max_items` names, each of at most `MAX_NAME` characters."""
    return dataclasses.field(default=default, metadata={"max_items": max_items, "max_length": MAX_NAME})


def short_text(max_length: int, default: Any = dataclasses.MISSING) -> Any:
    """A string of at most `max_length` characters."""
    return dataclasses.field(default=default, metadata={"max_length": max_length})


def one_of(*choices: str, default: Any = dataclasses.MISSING, max_items: int = 16) -> Any:
    """A string, or a tuple of at most `max_items` strings, out of `choices`."""
    return dataclasses.field(default=default, metadata={"choices": choices, "max_items": max_items})


def parse_json(text: str | bytes, where: str) -> Any:
    """Untrusted JSON, UTF-8: no NaN, no key twice, no half of a surrogate pair, at most `MAX_DEPTH` deep.

    Raises ConfigError.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\u" in text:  # half a surrogate pair can be neither printed nor saved
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {error}", argument=where) from error
    level, depth = [value], 1
    while level := [inner for v in level for inner in _inner(v)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"not valid JSON: nested more than {MAX_DEPTH} deep", argument=where)
    return value


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build dataclass `cls` from `values` (JSON types). `where` names the place in error messages."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"expected an object, got {type(values).__name__}", argument=where)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields), key=str):
        raise ConfigError(
            f"unknown key {', '.join(map(named, unknown[:5]))}"
            f"{' and others' if len(unknown) > 5 else ''}; known: {', '.join(fields)}",
            argument=where,
        )
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _checked(values[name], hints[name], field.metadata, f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"key {name} is missing", argument=where)
    return cls(**arguments)


def validate(config: Any, where: str) -> None:
    """Hold a frozen dataclass built in Python to the rules of `from_dict`. Raises ConfigError naming the field."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = _checked(
            getattr(config, field.name), hints[field.name], field.metadata, f"{where}: {field.name}"
        )
        object.__setattr__(config, field.name, value)


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON form of a config dataclass; tuples become lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def _checked(value: Any, hint: Any, rules: Mapping[str, Any], where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        hint = next(option for option in options if option is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"expected a list, got {shown(value)}", argument=where)
        if len(value) > rules.get("max_items", 16):
            raise ConfigError(f"at most {rules.get('max_items', 16)} items, got {len(value)}", argument=where)
        item = typing.get_args(hint)[0]
        return tuple(_checked(v, item, rules, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        value = _float(value, where)
    hint = (
        typing.get_origin(hint) or hint
    )  # dict[str, Any] -> dict: its entries are checked where they are used
    if type(value) is not hint:
        raise ConfigError(f"expected {hint.__name__}, got {shown(value)}", argument=where)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"expected a finite number, got {value}", argument=where)
    if "low" in rules and not rules["low"] <= value <= rules["high"]:
        raise ConfigError(f"expected {rules['low']} to {rules['high']}, got {_number(value)}", argument=where)
    if "max_length" in rules and len(value) > rules["max_length"]:
        raise ConfigError(
            f"at most {rules['max_length']} characters, got {len(value)}: {shown(value)}", argument=where
        )
    if "choices" in rules and value not in rules["choices"]:
        raise ConfigError(
            f"expected one of {', '.join(rules['choices'])}, got {shown(value)}", argument=where
        )
    return value


def check_flags(**flags: Any) -> None:
    """Raise ConfigError for a keyword argument that is neither True nor False: the string "no" would count as true."""
    for name, value in flags.items():
        if type(value) is not bool:
            raise ConfigError(f"expected True or False, got {shown(value)}", argument=name)


def shown(value: Any) -> str:
    """`value` in a message: its type and its beginning, whatever its size and depth."""
    try:
        text = " ".join(reprlib.repr(value).split())  # a tensor's is of many lines
    except ValueError:  # an integer of more digits than Python writes out
        text = "of thousands of digits"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _number(value: float) -> str:
    return str(value) if abs(value) < 1e30 else shown(value)


def named(name: Any) -> str:
    """A key in a message: harmless to a terminal, and short."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 60 else reprlib.repr(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one key twice means one thing to this reader and another to the next."""
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {named(twice)} twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _inner(value: Any) -> list[Any]:
    """What lies directly within `value` and may itself hold something."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [v for v in values if isinstance(v, (dict, list))]


def _float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"expected a finite number, got {shown(value)}", argument=where) from None
