"""All samples in one file of numbers: .npy, which can be memory-mapped, or .npz."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ConfigError
from ..files import (
    exists,
    held,
    make_folder,
    read_ordinary,
    remove_leftovers,
    replace_by,
    write_at,
    write_atomic,
    write_whole,
)
from . import record as records
from .output import Output
from .record import Record

ARRAYS = (".npz", ".npy")
VALUES, RECORD, DONE, WHOLE = "x.npy", "record.json", "done", "whole.npz"
MAX_DIGITS = 20


class ArrayFile(Output):
    """float32 [n, *shape], in the units of ``sample``: a .npy file, or `x` in a .npz file, beside `labels`, if there
    are any, and `request`, the record as JSON, which lies in NAME.npy.json beside a .npy file.

    Until all is there it is made in a hidden folder beside: ``.NAME.part``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._work = path.with_name(f".{path.name}.part")
        self._beside = path.with_name(path.name + ".json")
        self._zipped = path.suffix.lower() == ".npz"
        self._request: Any = None
        self._record: Record = {}
        self._header = b""
        self._bytes = 0  # of a sample
        self._done = 0  # samples written
        self._finished = False

    def check(self, shape: Sequence[int]) -> None:
        pass  # numbers of any shape

    def earlier(self) -> Record | None:
        return records.read(self._work / RECORD) or self._whole()

    def complete(self, record: Record) -> bool:
        return not exists(self._work)

    def _whole(self) -> Record | None:
        """The record of the finished file; None where there is none, or another's file."""
        if not self._zipped:
            return records.read(self._beside) if exists(self.path) else None
        with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(self.path) as archive:
            return records.decode(str(archive["request"]).encode(), self.path)
        return None

    @contextmanager
    def writing(
        self, request: Any, record: Record, shape: Sequence[int], overwrite: bool
    ) -> Iterator[Record]:
        self._request = request
        whole = self._whole()
        mine = whole is not None and records.same(record, whole)
        if exists(self.path) and not mine and not overwrite:
            if whole is None:
                raise ConfigError("exists already; choose another name, or --overwrite", argument=self.path)
            raise records.refuse(
                self.path, record, whole, f"{len(records.seeds_of(whole))} samples", "another name"
            )
        if whole is not None and mine and not exists(self._work):
            self._finished = True
            yield whole
            return
        make_folder(self._work)
        with held(self._work) as alone:
            if not alone:
                raise ConfigError(
                    "another process writes it; wait, or choose another name", argument=self.path
                )
            earlier = records.read(self._work / RECORD)
            foreign = earlier is not None and not records.same(record, earlier)
            if earlier is not None and foreign and not overwrite:
                kept = f"{self._read_done()} of {len(records.seeds_of(earlier))} samples"
                raise records.refuse(self._work, record, earlier, kept, "another name")
            remove_leftovers(self._work, [RECORD, DONE, VALUES])
            remove_leftovers(self.path.parent, [self._beside.name])
            # A .npy file's record is beside it before the file has its name: the numbers are then still in the work.
            named = self._zipped or earlier is None or not exists(self._work / VALUES)
            if (
                whole is not None and mine and named and not foreign
            ):  # a kill in `finish` left some of the work
                self._finished = True
                self._clear()
                yield whole
                return
            self._prepare(record, earlier, (len(request.seeds), *shape))
            yield self._record

    def _prepare(self, record: Record, earlier: Record | None, shape: tuple[int, ...]) -> None:
        self._header = header(shape)
        self._bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
        if earlier is not None and records.same(record, earlier):
            self._record, self._done = earlier, self._read_done()
            return
        for name in (DONE, RECORD):  # a kill in between leaves numbers without a record, which are begun anew
            with suppress(FileNotFoundError):
                os.unlink(self._work / name)
        self._record = record
        write_atomic(self._work / VALUES, self._header)
        write_atomic(self._work / RECORD, records.encode(record))

    def _read_done(self) -> int:
        path = self._work / DONE
        if not exists(path):
            return 0
        text = read_ordinary(path, MAX_DIGITS, ConfigError).decode(errors="replace").strip()
        if not text.isdecimal():
            raise ConfigError("is damaged; delete it to begin anew", argument=self._work)
        return int(text)

    def done(self, start: int, stop: int) -> bool:
        return self._finished or stop <= self._done

    def write(self, start: int, samples: Tensor) -> None:
        values = np.ascontiguousarray(samples.float().numpy(force=True))
        write_at(self._work / VALUES, len(self._header) + start * self._bytes, values.data.cast("B"))
        write_atomic(self._work / DONE, str(start + len(values)).encode())
        self._done = start + len(values)

    def finish(self) -> list[Path]:
        files = [self.path] if self._zipped else [self.path, self._beside]
        if self._finished:
            return files
        if self._zipped:
            self._zip()
        else:
            write_atomic(self._beside, records.encode(self._record))
        replace_by(self.path, self._work / (WHOLE if self._zipped else VALUES))
        self._clear()
        return files

    def _clear(self) -> None:
        """Remove the work; the record last, so that a kill in between leaves it with what it is about."""
        for name in (VALUES, WHOLE, DONE, RECORD):
            with suppress(FileNotFoundError):
                os.unlink(self._work / name)
        with suppress(OSError):  # somebody has put something into it
            self._work.rmdir()

    def _zip(self) -> None:
        """The .npz file, beside the numbers, of which a part at a time is in memory."""
        arrays: dict[str, Any] = {"x": np.load(self._work / VALUES, mmap_mode="r")}
        if self._request.labels[0] is not None:
            arrays["labels"] = np.array(self._request.labels, dtype=np.int64)
        arrays["request"] = np.array(records.encode(self._record).decode().strip())
        write_whole(self._work / WHOLE, lambda file: np.savez(file, **arrays))


def header(shape: tuple[int, ...]) -> bytes:
    """The beginning of a .npy file of float32 numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()
