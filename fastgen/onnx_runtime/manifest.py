"""``model.json``: what an exported folder says of its model and its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..config import at_most, bounded, from_dict
from ..errors import CheckpointError, ConfigError
from ..files import open_ordinary, read_ordinary

MANIFEST = "model.json"
FORMAT = "fastgen-onnx"
VERSION = 1
MAX_BYTES = 8 << 20
AGAIN = "write the export again (fastgen export --force)"
MAX_SIZE = 2**31 - 1  # of a shape, and of counts


@dataclass(frozen=True)
class DiffusionFacts:
    """What ``model.json`` must say of a diffusion model."""

    defaults: dict[str, Any]
    shape: tuple[int, ...] = bounded(1, MAX_SIZE)
    classes: int | None = bounded(1, MAX_SIZE)
    null_class: int | None = bounded(0, MAX_SIZE)
    class_names: tuple[str, ...] | None = at_most(1_000_000)


@dataclass(frozen=True)
class DiffusionDefaults:
    """What ``sample`` uses where its caller says nothing."""

    solver: str
    guidance_scale: float
    steps: int = bounded(1, MAX_SIZE)


@dataclass(frozen=True)
class FlowFacts:
    """What ``model.json`` must say of a flow."""

    defaults: dict[str, Any]
    shape: tuple[int, ...] = bounded(1, MAX_SIZE)
    latent_shapes: tuple[tuple[int, ...], ...] = bounded(1, MAX_SIZE, max_items=64)
    levels: int | None = bounded(2, MAX_SIZE)
    support: tuple[float, ...] | None = bounded(-1e30, 1e30, max_items=2)
    classes: int | None = bounded(1, MAX_SIZE)
    context: int | None = bounded(0, MAX_SIZE)
    class_names: tuple[str, ...] | None = at_most(1_000_000)


@dataclass(frozen=True)
class FlowDefaults:
    """What ``sample`` uses where its caller says nothing."""

    temperature: float = bounded(0.0, 1e30)


FACTS: dict[str, tuple[type, type]] = {
    "diffusion": (DiffusionFacts, DiffusionDefaults),
    "flow": (FlowFacts, FlowDefaults),
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``model.json`` of an export says, with all the fields of its family. Raises CheckpointError."""
    raw, path = read_raw_manifest(folder), folder / MANIFEST
    if bad := next((name for name, entry in raw["files"].items() if not _has_digest(entry)), None):
        raise CheckpointError(f"has no SHA-256; {AGAIN}", argument=f"{path}: files: {bad}")
    if raw.get("family") in FACTS:
        _check_facts(raw, path)
    return raw


def read_raw_manifest(folder: Path) -> dict[str, Any]:
    """As `read_manifest`, for a folder that is to be overwritten: of its fields only the files' names are checked."""
    path = folder / MANIFEST
    raw = read_json(path)
    files = raw.get("files") if isinstance(raw, dict) else None
    if not isinstance(files, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise CheckpointError(
            "is no description of an export that this version can read; write one with fastgen export",
            argument=path,
        )
    if any(os.path.isabs(name) or ".." in Path(name).parts for name in files):
        raise CheckpointError("names files outside of its folder", argument=path)
    return raw


def _has_digest(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str)


def _check_facts(raw: Mapping[str, Any], path: Path) -> None:
    """Whether there is what a model of its family is described by. Raises CheckpointError."""
    facts, defaults = FACTS[raw["family"]]
    try:
        found: Any = from_dict(facts, _known(facts, raw), str(path))
        from_dict(defaults, _known(defaults, found.defaults), f"{path}: defaults")
    except ConfigError as error:
        raise CheckpointError(f"{error.reason}; {AGAIN}", argument=error.argument) from error
    support = raw.get("support")
    if support is not None and len(support) != 2:
        raise CheckpointError(
            f"expected [lowest, highest] or null, got {support}; {AGAIN}", argument=f"{path}: support"
        )
    names = found.class_names
    if names is not None and len(names) != found.classes:
        raise CheckpointError(
            f"{len(names)} for {found.classes or 'no'} classes; {AGAIN}",
            argument=f"{path}: class_names",
        )


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that `cls` has: a later version may say more."""
    return {field.name: values[field.name] for field in fields(cls) if field.name in values}


def check_digest(folder: Path, files: Mapping[str, Any], name: str) -> None:
    """Whether the file `name` is the one that was exported, by its SHA-256. Raises CheckpointError."""
    path = folder / name
    with open_ordinary(path, CheckpointError) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != files[name]["sha256"]:
        raise CheckpointError(
            f"its SHA-256 is not the one in {MANIFEST}: the file is damaged or was changed; copy or export it again",
            argument=path,
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file of ordinary size. Raises CheckpointError."""
    try:
        return json.loads(read_ordinary(path, MAX_BYTES, CheckpointError))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON: {error}", argument=path) from error
