"""Tensors from the weight files that other projects write: safetensors, torch.save's, and shards with an index.

Nothing of a pickle is executed (``torch.load(weights_only=True)``), and nothing is read before it is asked for. What is
written goes to disk a tensor at a time, so that a model of any size is converted in little memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath

import safetensors
import torch
from torch import Tensor

from fastgen.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Spec
from fastgen.errors import CheckpointError

from .base import LFS_POINTER, Tensors, check_plain, lfs_error, read_json, write_json

MAX_TIED = 64  # a file's tensors may share values, but together are at most this often its size


@dataclass(frozen=True)
class Found:
    """Weight files of one network. index: the file that says which shard holds which tensor, or None."""

    files: tuple[Path, ...]
    index: Path | None = None


def candidates(stem: str, variant: str | None) -> list[tuple[str, str]]:
    """(file, index of shards) by preference: ``stem[.variant].safetensors``, then ``.bin``."""
    middle = f".{variant}" if variant else ""
    return [
        (f"{stem}{middle}.{kind}", f"{stem}.{kind}.index{middle}.json") for kind in ("safetensors", "bin")
    ]


def find(folder: Path, stem: str, variant: str | None) -> Found:
    """The weight files in `folder`. Raises CheckpointError that says which are there instead."""
    for file, index in candidates(stem, variant):
        if (folder / file).is_file():
            return Found((folder / file,))
        if (folder / index).is_file():
            return Found(_shards(folder / index), folder / index)
    others = sorted(
        p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".msgpack", ".h5", ".ckpt")
    )
    wanted = " or ".join(file for file, _ in candidates(stem, variant))
    there = (
        f"there is {', '.join(others[:8])}"
        if others
        else "there are no weights at all; is the download complete?"
    )
    hint = "; choose one with variant=" if variant is None and any(stem in name for name in others) else ""
    raise CheckpointError(
        f"no {wanted}{f' (variant {variant!r})' if variant else ''}; {there}{hint}", argument=folder
    )


def open_weights(found: Found) -> Tensors:
    """The tensors in `found`. Raises CheckpointError for damaged or missing files, or names given twice."""
    shapes: dict[str, tuple[int, ...]] = {}
    getters: dict[str, Callable[[str], Tensor]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in found.files:
        _check_file(path)
        names, get, types = (_open_safetensors if path.suffix == ".safetensors" else _open_bin)(path)
        dtypes |= types
        size = path.stat().st_size
        # An empty tensor takes no place, but what is built beside it has its other sizes.
        if bad := next((n for n, s in names.items() if 0 in s and math.prod(i or 1 for i in s) > size), None):
            raise CheckpointError(
                f"has shape {list(names[bad])}, in a file of {size} bytes", argument=f"{path}: {bad}"
            )
        if twice := sorted(set(names) & set(shapes)):
            raise CheckpointError("is in another shard, too", argument=f"{path}: {twice[0]}")
        shapes |= names
        getters |= dict.fromkeys(names, get)
    if found.index is not None and (lost := sorted(set(_weight_map(found.index)) - set(shapes))):
        raise CheckpointError(f"names {lost[0]}, which is in none of the shards", argument=found.index)
    return Tensors(shapes, lambda name: getters[name](name), str(found.index or found.files[0]), dtypes)


def sha256(found: Found) -> str:
    """Hex digest: of the file; of shards, of their digests one after the other."""
    digests = []
    for path in found.files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if found.index is None else hashlib.sha256("".join(digests).encode()).hexdigest()


def save(folder: Path, spec: Spec, tensors: Tensors, dtype: torch.dtype | None) -> Spec:
    """As ``fastgen.checkpoint.save``, from tensors that are not read yet; returns the spec with its sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    free = dataclasses.replace(spec, provenance={k: v for k, v in spec.provenance.items() if k != "sha256"})
    write_json(
        folder / CONFIG_FILE, dataclasses.asdict(free)
    )  # ties the config to no weights until they are there
    tied = dataclasses.replace(
        free, provenance={**free.provenance, "sha256": write(folder / WEIGHTS_FILE, tensors, dtype)}
    )
    write_json(folder / CONFIG_FILE, dataclasses.asdict(tied))
    return tied


def write(path: Path, tensors: Tensors, dtype: torch.dtype | None) -> str:
    """Write a safetensors file, floating-point tensors as `dtype` (None: as they are); returns its sha256.

    One tensor at a time is in memory. `path` holds the old file or the whole new one. Raises CheckpointError for values
    that are not finite, or are too large for `dtype`.
    """
    names = sorted(tensors.shapes)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in names:
        kind = tensors.dtypes[name] if name in tensors.dtypes else tensors.get(name).dtype
        kind = _written_dtype(kind, dtype)
        if kind not in _SAFETENSORS_NAMES:
            raise CheckpointError(f"{name} has dtype {kind}, which cannot be written", argument=tensors.where)
        end = begin + math.prod(tensors.shapes[name]) * kind.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[kind],
            "shape": list(tensors.shapes[name]),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in (len(text).to_bytes(8, "little"), text):
                file.write(piece)
                digest.update(piece)
            for name in names:
                data = _bytes(tensors.get(name), dtype, f"{tensors.where}: {name}")
                file.write(data)
                digest.update(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_TYPES = {name: kind for kind, name in _SAFETENSORS_NAMES.items()}


def _written_dtype(kind: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and kind.is_floating_point else kind


def _bytes(tensor: Tensor, dtype: torch.dtype | None, where: str) -> memoryview:
    tensor = tensor.detach().cpu()
    written = tensor.to(_written_dtype(tensor.dtype, dtype)).contiguous()
    if written.is_floating_point() and not torch.isfinite(written).all():
        if torch.isfinite(tensor).all():
            raise CheckpointError(
                f"holds values too large for {dtype}; choose bfloat16 or float32", argument=where
            )
        raise CheckpointError("holds values that are not finite", argument=where)
    return written.reshape(-1).view(torch.uint8).numpy().data


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if PurePath(name).name != name:
            raise CheckpointError(f"{name!r} is not the name of a file beside it", argument=index)
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"names {name}, which is not there; the download is incomplete: fetch it again",
                argument=index,
            )
    return tuple(index.parent / name for name in names)


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise CheckpointError("expected a weight_map of tensor names to file names", argument=index)
    return found


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise lfs_error(path)
    if not start:
        raise CheckpointError("is empty; the download is incomplete: fetch it again", argument=path)


Opened = tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor], dict[str, torch.dtype]]


def _open_safetensors(path: Path) -> Opened:
    try:
        with ExitStack() as stack:
            file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            kinds = {name: _TYPES.get(piece.get_dtype()) for name, piece in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"not a whole safetensors file: {error}; the download may be incomplete: fetch it again",
            argument=path,
        ) from error

    def get(name: str) -> Tensor:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return file.get_tensor(name)

    return shapes, get, {name: kind for name, kind in kinds.items() if kind is not None}


def _open_bin(path: Path) -> Opened:
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "holds more than tensors, or is damaged; pickles are not executed. "
            "Ask for a safetensors file, or convert it where you trust it",
            argument=path,
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"not a whole file of torch.save: {str(error).splitlines()[0] if str(error) else 'it ends early'}; "
            "the download may be incomplete: fetch it again",
            argument=path,
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # of pytorch-lightning and many a training script
    if not isinstance(state, dict) or not all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()
    ):
        raise CheckpointError(f"expected tensors by name, got {type(state).__name__}", argument=path)
    _check_extent(path, state)
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    return shapes, state.__getitem__, {name: t.dtype for name, t in state.items()}


def _check_extent(path: Path, state: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless every tensor is plain, and as large as what the file holds of it.

    A pickle may give a tensor any shape and strides: with a stride of 0, a kilobyte claims to be a terabyte.
    """
    size = path.stat().st_size
    total = 0
    storages: dict[int, int] = {}
    for name, tensor in state.items():
        where = f"{path}: {name}"
        check_plain(tensor, where)
        if tensor.device.type != "cpu":
            raise CheckpointError(f"is on {tensor.device}; expected values in the file", argument=where)
        storage = tensor.untyped_storage()
        if tensor.nbytes > storage.nbytes():
            raise CheckpointError(
                f"has shape {list(tensor.shape)}, {tensor.nbytes} bytes, of which the file has "
                f"{storage.nbytes()}; expanded tensors are not supported: save contiguous copies",
                argument=where,
            )
        total += tensor.nbytes
        storages[storage.data_ptr()] = max(storage.nbytes(), storages.get(storage.data_ptr(), 0))
    if sum(storages.values()) > size or total > MAX_TIED * size:
        raise CheckpointError(
            f"{size} bytes, but its tensors would take {max(total, sum(storages.values()))}; is the file whole?",
            argument=path,
        )
