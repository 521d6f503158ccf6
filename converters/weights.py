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
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from torch import Tensor

from fastgen.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Spec
from fastgen.errors import CheckpointError

from .base import Report, Tensors, read_json, write_json
from .opening import (
    SAFETENSORS_NAMES,
    Opened,
    check_extent,
    check_file,
    check_sizes,
    open_bin,
    open_safetensors,
)
from .wrapping import Recognises, StateDict, choose, holds, unknown

STEMS = ("model", "pytorch_model")  # of accelerate's folders, and of Hugging Face's mixin
OTHER_WEIGHTS = re.compile(
    r"(pytorch_)?model.*\.(safetensors|bin)|diffusion_pytorch_model.*\.(safetensors|bin)"
)
TRAINING = re.compile(
    r"(optimizer|scheduler)(_\d+)?\.(bin|pt)|random_states_\d+\.pkl|(scaler|sampler.*)\.(pt|bin)"
)


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


def find(folder: Path, stems: Sequence[str], variant: str | None) -> Found:
    """The weight files in `folder`, of the first of `stems` that is there.

    Raises CheckpointError that says which are there instead.
    """
    for file, index in (pair for stem in stems for pair in candidates(stem, variant)):
        if (folder / file).is_file():
            return Found((folder / file,))
        if (folder / index).is_file():
            return Found(_shards(folder / index), folder / index)
    others = sorted(
        p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".msgpack", ".h5", ".ckpt")
    )
    wanted = " or ".join(file for file, _ in candidates(stems[0], variant))
    there = (
        f"there is {', '.join(others[:8])}"
        if others
        else "there are no weights at all; is the download complete?"
    )
    mine = any(stems[0] in name for name in others)
    hint = "; choose one with variant=" if variant is None and mine else ""
    raise CheckpointError(
        f"no {wanted}{f' (variant {variant!r})' if variant else ''}; {there}{hint}", argument=folder
    )


def of(path: Path) -> Found:
    """The weights that are a file, or lie in a folder as accelerate and Hugging Face's mixin save them.

    Raises CheckpointError.
    """
    return find(path, STEMS, None) if path.is_dir() else Found((path,))


def beside(found: Found) -> list[str]:
    """Other weights in the folder, in lines for a report."""
    folder = found.files[0].parent
    others = sorted(p.name for p in folder.glob("*") if OTHER_WEIGHTS.fullmatch(p.name))
    others = [name for name in others if folder / name not in found.files]
    return [f"{', '.join(others[:8])}: give a file's path to take its weights"] if others else []


def training(folder: Path) -> list[str]:
    """What a training run left in the folder, in lines for a report."""
    names = sorted(p.name for p in folder.glob("*") if TRAINING.fullmatch(p.name))
    return [f"{', '.join(names[:8])}: the state of a training run"] if names else []


def open_weights(
    found: Found,
    recognises: Recognises | None = None,
    report: Report | None = None,
    variant: str | None = None,
) -> Tensors:
    """The tensors in `found`, under the names that `recognises` knows; None: all, as they are.

    Keys that a state dict lies under and prefixes of its names are taken off, see `wrapping`; what was chosen goes into
    `report`. variant: which, where there are several. Raises CheckpointError for damaged or missing files, names given
    twice, tensors that are not plain or not wholly there; ConfigError for a `variant` that is not there.
    """
    dicts, beside, places = _open_all(found)
    where = str(found.index or found.files[0])
    if recognises is None:
        dicts, recognises = dicts[:1], lambda names: True
    chosen = choose(dicts, recognises, where, Report() if report is None else report, variant, beside)
    by_file: dict[Path, list[str]] = {path: [] for path in found.files}
    for name in chosen.names.values():
        by_file[places[chosen.keys, name]].append(name)
    for path, names in by_file.items():
        check_sizes(path, {name: chosen.tensors.shapes[name] for name in names})
        if path.suffix != ".safetensors":
            check_extent(path, {name: chosen.tensors.get(name) for name in names})
    if found.index is not None:
        there = {name for each in dicts for name in each.tensors.shapes}
        if lost := sorted(set(_weight_map(found.index)) - there):
            raise CheckpointError(f"names {lost[0]}, which is in none of the shards", argument=found.index)
    return chosen.renamed()


def at_the_top(found: Found, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the tensors that stand at the top of a file of torch.save, under no key. Raises CheckpointError."""
    held: dict[str, Tensor] = {}
    for path in found.files if names else ():
        if path.suffix == ".safetensors":
            continue
        for keys, (shapes, get, _) in open_bin(path)[0]:
            if not keys:
                held |= {name: get(name) for name in names if name in shapes}
        check_extent(path, held)
    return held


def hold(found: Found, recognises: Recognises) -> bool:
    """Whether there are tensors in `found` with names that `recognises` knows. Raises CheckpointError."""
    return holds(_open_all(found)[0], recognises)


def contents(found: Found) -> tuple[str, dict[str, tuple[int, ...]]]:
    """What `found` holds, in words, and the shapes of all its tensors by name. Raises CheckpointError."""
    dicts, beside, _ = _open_all(found)
    return unknown(dicts, beside), {n: s for each in dicts for n, s in each.tensors.shapes.items()}


def _open_all(found: Found) -> tuple[list[StateDict], list[str], dict[tuple[str, str], Path]]:
    """Every state dict in the files, those of shards together; all keys at the top; (keys, name) -> file."""
    pieces: dict[str, list[Opened]] = {}
    beside: list[str] = []
    places: dict[tuple[str, str], Path] = {}
    for path in found.files:
        check_file(path)
        safe = path.suffix == ".safetensors"
        opened, top = ([("", open_safetensors(path))], []) if safe else open_bin(path)
        beside += top
        for keys, piece in opened:
            for name in piece[0]:
                if places.setdefault((keys, name), path) != path:
                    raise CheckpointError("is in another shard, too", argument=f"{path}: {name}")
            pieces.setdefault(keys, []).append(piece)
    where = str(found.index or found.files[0])
    return [StateDict(keys, _joined(each, where)) for keys, each in pieces.items()], beside, places


def _joined(pieces: Iterable[Opened], where: str) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {}
    getters: dict[str, Callable[[str], Tensor]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for names, get, types in pieces:
        shapes |= names
        getters |= dict.fromkeys(names, get)
        dtypes |= types
    return Tensors(shapes, lambda name: getters[name](name), where, dtypes)


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
        if kind not in SAFETENSORS_NAMES:
            raise CheckpointError(f"{name} has dtype {kind}, which cannot be written", argument=tensors.where)
        end = begin + math.prod(tensors.shapes[name]) * kind.itemsize
        header[name] = {
            "dtype": SAFETENSORS_NAMES[kind],
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
