"""The folder that ``fastgen export`` writes: the models, the tables, and ``model.json``, which says what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.errors import CheckpointError, ConfigError
from fastgen.files import make_folder, prepared, read_ordinary
from fastgen.onnx_runtime.manifest import FORMAT, MANIFEST, VERSION, read_raw_manifest

if TYPE_CHECKING:
    import onnx

LIMIT = 2_000_000_000  # bytes of one protobuf file are at most 2^31 - 1
SMALL = 1024  # bytes of a tensor that stays in the model where others lie outside


@dataclass
class Written:
    """What an export wrote. files: name -> bytes on disk. left_out: lines about what there is not, and why."""

    folder: Path
    files: dict[str, int]
    left_out: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)


def model_files(name: str, model: onnx.ModelProto, limit: int = LIMIT) -> dict[str, bytes]:
    """The files of a model: one, or, above `limit` bytes, one without its large tensors and ``NAME.data`` with them."""
    if model.ByteSize() <= limit:
        return {name: model.SerializeToString(deterministic=True)}
    import onnx

    data, where = bytearray(), f"{name}.data"
    outside = type(model)()
    outside.CopyFrom(model)
    for tensor in _tensors(outside.graph):
        raw = tensor.raw_data
        if len(raw) <= SMALL:
            continue
        offset = len(data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", where), ("offset", offset), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        data += raw + bytes(-len(raw) % 4096)  # pages: a reader may map them
    return {where: bytes(data), name: outside.SerializeToString(deterministic=True)}


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """Weights of a graph and of those within it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def check_destination(folder: Path, names: Iterable[str], force: bool) -> None:
    """Raises ConfigError where writing `names` would overwrite something and `force` does not allow it."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError("is a file; give a folder", argument=folder)
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ConfigError(
            f"holds {there[0]}{more} already; choose another folder, or overwrite with force=True (--force)",
            argument=folder,
        )


def changed(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Names of those that are not in the folder already, as they would be written."""
    return [name for name, data in files.items() if not _holds(folder / name, data)]


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_ordinary(path, len(data), CheckpointError) == data
    except CheckpointError:
        return False


def write_folder(
    folder: Path,
    files: Mapping[str, bytes],
    described: Mapping[str, Any],
    facts: Mapping[str, Any],
    force: bool,
) -> dict[str, int]:
    """Write `files` and the manifest: all of them, or nothing. Returns the sizes in bytes.

    described: for the manifest, what it says of a file besides its digest. facts: what it says of the model. An
    export of the same model that is there already keeps its other files; one of another model is replaced where
    `force` allows it. Raises ConfigError, WriteError.
    """
    old = read_raw_manifest(folder) if (folder / MANIFEST).exists() else None
    same = old is not None and all(old.get(key) == value for key, value in facts.items())
    if old is not None and not same and not force:
        raise ConfigError(
            "holds the export of another model, or of this one with other options; choose another folder, or "
            "overwrite with force=True (--force)",
            argument=folder,
        )
    check_destination(folder, changed(folder, files), force)
    entries = dict(old["files"]) if old is not None and same else {}
    for name, data in files.items():
        entries[name] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            **described.get(name, {}),
        }
    manifest = {"format": FORMAT, "version": VERSION, **facts, "files": dict(sorted(entries.items()))}
    text = json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"
    for parent in sorted({(folder / name).parent for name in (*files, MANIFEST)}):
        make_folder(parent, parents=True)
    with contextlib.ExitStack() as stack:
        # The manifest last: a folder that has one is whole.
        finish = [stack.enter_context(prepared(folder / name, data)) for name, data in files.items()]
        finish.append(stack.enter_context(prepared(folder / MANIFEST, text)))
        for replace in finish:
            replace()
    if old is not None and not same:
        for name in set(old["files"]) - set(files):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    return {name: len(data) for name, data in files.items()} | {MANIFEST: len(text)}
