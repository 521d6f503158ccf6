"""Flags that only some families or models have: declared for all, refused where they do not apply."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from ..families import FAMILIES, Family, Flag
from ..families.family import given
from .arguments import flag_names


def family_flags(command: str) -> dict[str, Sequence[Flag]]:
    """The flags of `command` that each family has, by its name."""
    return {family.name: family.flags.get(command, ()) for family in FAMILIES.values()}


def add_owned_flags(parser: argparse.ArgumentParser, owned: Mapping[str, Sequence[Flag]], title: str) -> None:
    """Declare `owned` flags, those of the same owners in one group of the help. title: ``"{} models"``."""
    for names, flags in by_owners(owned).items():
        group = parser.add_argument_group(title.format(", ".join(names)))
        for flag in flags:
            flag.add(group)


def by_owners(owned: Mapping[str, Sequence[Flag]]) -> dict[tuple[str, ...], list[Flag]]:
    """Every flag once, by the names of all that have it. Raises ConfigError where two declare it differently."""
    owners: dict[str, tuple[Flag, list[str]]] = {}
    for name, flags in owned.items():
        for flag in flags:
            known, names = owners.setdefault(flag.name, (flag, []))
            if known != flag:
                raise ConfigError(f"{names[0]} and {name} declare it differently", argument=flag.name)
            names.append(name)
    groups: dict[tuple[str, ...], list[Flag]] = {}
    for flag, names in owners.values():
        groups.setdefault(tuple(names), []).append(flag)
    return groups


def refuse_others(
    parser: argparse.ArgumentParser, args: argparse.Namespace, command: str, family: Family
) -> None:
    """End with a usage error (exit code 2) where the user gave flags that `family` does not have."""
    own = {flag.dest for flag in family.flags.get(command, ())}
    if others := [name for name in given(args, every_flag(command)) if name not in own]:
        parser.error(f"unrecognized arguments for a {family.name} model: {flag_names(others)}")


def every_flag(command: str) -> list[Flag]:
    """The flags of `command` that some family has."""
    return list({flag.name: flag for flags in family_flags(command).values() for flag in flags}.values())
