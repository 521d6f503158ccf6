"""What lies in one weight file: safetensors, or torch.save's of whatever training scripts save.

Nothing of a pickle is executed, and what its tensors claim is compared with what the file holds.
"""

from __future__ import annotations

import argparse
import math
import pickle
import threading
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from fastgen.errors import CheckpointError

from .base import LFS_POINTER, check_plain, lfs_error
from .wrapping import quoted, within

MAX_TIED = 64  # a file's tensors may share values, but together are at most this often its size
SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
# What training scripts save beside weights, and holds values and nothing else: their arguments.
CONTAINERS: list[Any] = [argparse.Namespace]
_CONTAINERS_LOCK = threading.Lock()  # the list of what is let through is the process's
TYPES = {name: kind for kind, name in SAFETENSORS_NAMES.items()}

Opened = tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor], dict[str, torch.dtype]]


def check_file(path: Path) -> None:
    """Raise CheckpointError for an empty file, and for a pointer of git-lfs."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise lfs_error(path)
    if not start:
        raise CheckpointError("is empty; the download is incomplete: fetch it again", argument=path)


def check_sizes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """An empty tensor takes no place, but what is built beside it has its other sizes."""
    size = path.stat().st_size
    if bad := next((n for n, s in shapes.items() if 0 in s and math.prod(i or 1 for i in s) > size), None):
        raise CheckpointError(
            f"has shape {list(shapes[bad])}, in a file of {size} bytes", argument=f"{path}: {bad}"
        )


def open_safetensors(path: Path) -> Opened:
    """The tensors in the file, not read yet. Raises CheckpointError."""
    try:
        with ExitStack() as stack:
            file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            kinds = {name: TYPES.get(piece.get_dtype()) for name, piece in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"not a whole safetensors file: {error}; the download may be incomplete: fetch it again",
            argument=path,
        ) from error

    def get(name: str) -> Tensor:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return file.get_tensor(name)

    return shapes, get, {name: kind for name, kind in kinds.items() if kind is not None}


def open_bin(path: Path) -> tuple[list[tuple[str, Opened]], list[str]]:
    """Every state dict in the file, by the keys that it lies under; the keys at the top that are no tensors'.

    Raises CheckpointError for what is no whole file, no dictionary, or holds objects that a pickle would have to make.
    """
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        with _CONTAINERS_LOCK, torch.serialization.safe_globals(CONTAINERS):
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
            )
    except Exception as error:  # the unpickler raises any type of error for a file that is no pickle
        raise _refusal(path, error) from error
    opened = [
        (keys, ({n: tuple(t.shape) for n, t in d.items()}, d.__getitem__, {n: t.dtype for n, t in d.items()}))
        for keys, d in within(state)
    ]
    if not opened:
        got = type(state).__name__
        inside = (
            f" with the keys {', '.join(quoted(str(key)) for key in list(state)[:8])}"
            if isinstance(state, dict)
            else ""
        )
        raise CheckpointError(f"expected tensors by name, got {got}{inside}", argument=path)
    top = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    return opened, top


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """What to raise where torch.load raised `error`."""
    if not _saved(path):
        return CheckpointError(
            "is no file of weights: torch.save did not write it, and safetensors end in .safetensors",
            argument=path,
        )
    if isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"holds more than tensors{_classes(path)}, or is damaged; pickles are not executed. "
            "Ask for a safetensors file or save the state dict alone; classes that you trust are let through by "
            "torch.serialization.add_safe_globals",
            argument=path,
        )
    said = (
        "it ends early" if isinstance(error, EOFError) else f"{type(error).__name__}: {error}".splitlines()[0]
    )
    return CheckpointError(
        f"not a whole file of torch.save: {said}; the download may be incomplete: fetch it again",
        argument=path,
    )


def _saved(path: Path) -> bool:
    """Whether it begins as torch.save's files do: as a zip archive, or as a pickle of a binary protocol."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _classes(path: Path) -> str:
    """What a pickle would have executed, in words."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of a damaged file, anything
        return ""
    return f" ({', '.join(found[:4])})" if found else ""


def check_extent(path: Path, state: dict[str, Tensor]) -> None:
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
