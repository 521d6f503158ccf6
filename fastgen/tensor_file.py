"""Reading untrusted safetensors files: the header is checked before anything it claims is allocated.

    8 bytes     n, little-endian
    n bytes     JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}
    the rest    the tensors' bytes, one after the other without gaps

Files are read, not mapped: what was checked is what is used, also where somebody writes to the file meanwhile.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import parse_json, shown
from .errors import CheckpointError, ConfigError
from .files import open_ordinary

MAX_HEADER_BYTES = 3 << 19  # 10,000 tensors of long names; parsed, a header takes about ten times its bytes
BYTES_PER_BRACKET = 16  # at least: {"dtype":"F32","shape":[],"data_offsets":[0,0]} has three
MAX_DIMENSIONS = 8
QUOTE = ord('"')
CHUNK = 1 << 18  # elements that are read, converted and judged at a time
# A string, ended or not, or what begins a list or an object. Possessive and never failing: it takes linear time.
STRING_OR_BRACKET = re.compile(rb'[\[{]|"[^"\\]*+(?:\\.[^"\\]*+)*+["\\]?', re.DOTALL)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file: what it is, and the bytes [begin, end) after the header that hold it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """An open safetensors file. Its `entries` and `metadata` are known and consistent; no tensor is read yet.

    with TensorFile(path) as file:
        file.compare(expected)
        for name, tensor in file.read({...}):
            ...
        file.sha256  # of the whole file, once everything has been read
        file.flaw  # what is wrong with the numbers read so far, or None

    Raises CheckpointError, here and while reading.
    """

    def __init__(self, path: str | Path, data: bytes | None = None) -> None:
        """data: what is about to be written to `path`, to be judged in its place."""
        self.path = Path(path)
        self._file = open_ordinary(path, CheckpointError) if data is None else io.BytesIO(data)
        self._size = os.fstat(self._file.fileno()).st_size if data is None else len(data)
        self._hash = hashlib.sha256()
        self.flaw: str | None = None
        try:
            self.entries, self.metadata = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes read so far; of the file, after the last tensor of :meth:`read`."""
        return self._hash.hexdigest()

    def compare(self, expected: Mapping[str, Tensor], claim: str) -> None:
        """Hold names, shapes and kinds (floats, integers) against `expected` (meta tensors will do).

        claim: what asks for them, for the message: "config.json".
        """
        if missing := sorted(set(expected) - set(self.entries)):
            raise CheckpointError(
                f"{len(missing)} tensors are missing, the first is {shown(missing[0])}", argument=self.path
            )
        if extra := sorted(set(self.entries) - set(expected)):
            raise CheckpointError(
                f"{len(extra)} tensors do not belong, the first is {shown(extra[0])}", argument=self.path
            )
        for name, tensor in expected.items():
            entry = self.entries[name]
            if entry.shape != tuple(tensor.shape):
                raise CheckpointError(
                    f"{name} has shape {list(entry.shape)}, {claim} asks for {list(tensor.shape)}",
                    argument=self.path,
                )
            if entry.dtype.is_floating_point != tensor.is_floating_point():
                raise CheckpointError(
                    f"{name} has dtype {entry.dtype}, expected {tensor.dtype}", argument=self.path
                )

    def read(self, dtypes: Mapping[str, torch.dtype]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in the order of the file, once, as `dtypes` say (its own dtype where they say nothing).

        Beside the tensors themselves some megabytes are allocated: half-precision weights that become float32 take
        twice the bytes of the file, never more. The first tensor with a number that is not finite becomes `flaw`.
        """
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            yield name, self._tensor(name, entry, dtypes.get(name, entry.dtype))

    def _tensor(self, name: str, entry: Entry, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(entry.shape, dtype=dtype, device="cpu")
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            raw = part if dtype == entry.dtype else torch.empty(part.shape, dtype=entry.dtype, device="cpu")
            self._fill(raw)
            if raw is not part:
                part.copy_(raw)
            if self.flaw is None and dtype.is_floating_point and not _finite(part):
                what = "not finite" if not raw.isfinite().all() else f"too large for {dtype}"
                self.flaw = f"{name} holds values that are {what}".replace("torch.", "")
        return tensor

    def _fill(self, flat: Tensor) -> None:
        """Read the next bytes of the file into `flat` [n]."""
        if not flat.numel():
            return
        target = flat.view(torch.uint8).numpy().data
        try:
            count = self._file.readinto(target)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", argument=self.path) from error
        if count != len(target):
            raise self._damaged("it ends early")
        self._hash.update(target)

    def _header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        size = self._size
        prefix = self._file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise self._damaged(f"its header claims {length} bytes, the file has {size}")
        if length > MAX_HEADER_BYTES:
            raise self._damaged(f"its header claims {length} bytes, at most {MAX_HEADER_BYTES} are read")
        text = self._file.read(length)
        self._hash.update(prefix)
        self._hash.update(text)
        return self._parsed(text, size - 8 - length)

    def _parsed(self, text: bytes, room: int) -> tuple[dict[str, Entry], dict[str, str]]:
        """Entries and metadata out of a header, whose tensors take `room` bytes."""
        brackets = sum(text[found.start()] != QUOTE for found in STRING_OR_BRACKET.finditer(text))
        if brackets > 2 + len(text) // BYTES_PER_BRACKET:  # each becomes an object of far more bytes
            raise self._damaged(f"its header has {brackets} lists and objects, more than tensors need")
        try:
            raw = parse_json(text, "header")
        except ConfigError as error:
            raise self._damaged(str(error)) from error
        if not isinstance(raw, dict):
            raise self._damaged("its header is no object")
        metadata = raw.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._damaged("its __metadata__ is no object of strings")
        entries = {name: self._entry(name, value) for name, value in raw.items()}
        position = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != position:
                raise self._damaged(f"{shown(name)} begins at byte {entry.begin}, expected {position}")
            position = entry.end
        if position != room:
            raise self._damaged(f"its tensors take {position} bytes, the file has {room} for them")
        return entries, metadata

    def _entry(self, name: str, value: Any) -> Entry:
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"{shown(name)}: expected dtype, shape and data_offsets")
        dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
        if dtype is None:
            raise self._damaged(
                f"{shown(name)}: expected a dtype out of {', '.join(DTYPES)}, got {shown(value['dtype'])}"
            )
        shape, offsets = value["shape"], value["data_offsets"]
        if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
            raise self._damaged(f"{shown(name)}: {shown(shape)} is no shape")
        if not _counts(offsets) or len(offsets) != 2:
            raise self._damaged(f"{shown(name)}: {shown(offsets)} are no data_offsets")
        begin, end = offsets
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise self._damaged(
                f"{shown(name)}: shape {shape} of {value['dtype']} are not {end - begin} bytes"
            )
        return Entry(dtype, tuple(shape), begin, end)

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"not a whole safetensors file: {why}", argument=self.path)


def _counts(values: Any) -> bool:
    """Whether this is a list of integers from 0 to 2^62."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are. A sum shows one that is not, twenty times as fast; it may overflow by itself."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())
