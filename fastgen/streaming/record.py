"""The record of a request that lies with its files: what was asked of which model, and in which batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import parse_json
from ..errors import ConfigError, FastgenError
from ..files import exists, read_ordinary

MAX_BYTES = 256 << 20  # a million seeds and labels, and options one a sample
SHOWN = 3  # differences in a message
LONGEST = 40  # characters of a value in it
Record = dict[str, Any]


def compact(request: Any) -> dict[str, Any]:
    """As ``request.to_dict()``; seeds in a row by the first one: it says the same as a hundred thousand numbers."""
    asked: dict[str, Any] = request.to_dict()
    seeds = request.seeds
    if seeds != tuple(range(seeds[0], seeds[0] + len(seeds))):
        return asked
    del asked["seeds"]
    if all(label is None for label in request.labels):
        asked["labels"] = None
    return {"n": len(seeds), "seed": seeds[0], **asked}


def seeds_of(record: Mapping[str, Any]) -> list[int]:
    """One a sample. Raises ConfigError for a record that no program of ours wrote."""
    request = record.get("request")
    if isinstance(request, dict):
        if isinstance(request.get("seeds"), list):
            return request["seeds"]
        n, seed = request.get("n"), request.get("seed")
        if type(n) is int and type(seed) is int and 0 < n <= 1 << 24:
            return list(range(seed, seed + n))
    raise ConfigError("a record of samples is damaged", argument="record")


def encode(record: Record) -> bytes:
    """As JSON, on a line."""
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def decode(data: bytes, where: object) -> Record:
    """A record from `data`. Raises ConfigError."""
    record = parse_json(data, str(where))
    if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
        raise ConfigError("is no record of samples", argument=where)
    batch = record.get("batch")
    if type(batch) is not int or batch < 1:
        raise ConfigError("is a damaged record of samples", argument=where)
    seeds_of(record)
    return record


def read(path: Path, overwrite: bool) -> Record | None:
    """The record in a file; None where there is none.

    Another file of that name raises ConfigError; where all is to be replaced (`overwrite`) it counts as none.
    """
    if not exists(path):
        return None
    try:
        return decode(read_ordinary(path, MAX_BYTES, ConfigError), path)
    except ConfigError as error:
        if overwrite:
            return None
        raise ConfigError(f"{error.reason}; --overwrite begins anew, without it", argument=path) from error


def same(mine: Record, other: Record) -> bool:
    """Whether both say the same samples; how many at a time was for the one that began to say.

    Where a model was found does not matter, where both say the sha256 of its weights and its settings.
    """
    return not list(_differences(mine, other))


def difference(mine: Record, theirs: Record) -> str:
    """What differs, for a message: ``steps is 20 there, 50 is asked for``."""
    found = list(_differences(mine, theirs))
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(f"{name} is {a} there, {b} is asked for" for name, a, b in found[:SHOWN]) + more


def _differences(mine: Record, theirs: Record) -> Iterator[tuple[str, str, str]]:
    plain = json.loads(encode(mine))  # tuples are lists there
    ignored = {"batch"}
    if plain.get("sha256") is not None and plain["sha256"] == theirs.get("sha256"):
        ignored |= {"model", "revision"}
    yield from _unlike(
        *(
            {name: value for name, value in record.items() if name not in ignored}
            for record in (plain, theirs)
        )
    )


def _unlike(ours: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys([*ours, *others]):
        a, b = others.get(name), ours.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _unlike(b, a)
        elif a != b:
            yield name, _short(a), _short(b)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def refuse(where: object, mine: Record, theirs: Record, kept: str, how: str) -> FastgenError:
    """The error for files of another request. kept: what is there; how: another place for these."""
    return ConfigError(
        f"holds {kept} of another request: {difference(mine, theirs)}. Ask for the same to go on, choose {how}, or "
        "replace them (--overwrite)",
        argument=where,
    )
