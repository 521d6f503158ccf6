"""Flags of a command that only some families of models have: declared for all, refused where they do not apply."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ConfigError
from ..families import FAMILIES, Family, Flag


def add_family_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """Declare the flags that families have for `command`, those of the same families in one group of the help.

    Raises ConfigError where two families declare a flag differently.
    """
    owners: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        for flag in family.flags.get(command, ()):
            if _flags(command)[flag.name] != flag:
                raise ConfigError("two families declare it differently", argument=flag.name)
            owners.setdefault(flag.name, []).append(family.name)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, flag in _flags(command).items():
        title = f"{', '.join(owners[name])} models"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        flag.add(groups[title])


def given(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Values of the families' flags that the user gave, by their `dest`, in the order of their declaration."""
    names = [flag.dest for flag in _flags(command).values()]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def refuse_others(
    parser: argparse.ArgumentParser, args: argparse.Namespace, command: str, family: Family
) -> None:
    """End with a usage error (exit code 2) where the user gave flags that `family` does not have."""
    own = {flag.dest for flag in family.flags.get(command, ())}
    if others := [name for name in given(args, command) if name not in own]:
        parser.error(f"unrecognized arguments for a {family.name} model: {flag_names(others)}")


def flag_names(names: list[str]) -> str:
    """``["guidance_scale", "eta"]`` -> ``--guidance-scale, --eta``, for a message."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _flags(command: str) -> dict[str, Flag]:
    """The flags of all families for `command`, by name."""
    return {flag.name: flag for family in FAMILIES.values() for flag in family.flags.get(command, ())}
