"""``model.json``: what an exported folder says of its model and its files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import read_ordinary

MANIFEST = "model.json"
FORMAT = "fastgen-onnx"
VERSION = 1
MAX_BYTES = 8 << 20


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``model.json`` of an export says. Raises CheckpointError."""
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


def read_json(path: Path) -> Any:
    """The content of a JSON file of ordinary size. Raises CheckpointError."""
    try:
        return json.loads(read_ordinary(path, MAX_BYTES, CheckpointError))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON: {error}", argument=path) from error
