"""All samples in one file of numbers: .npy, which can be memory-mapped, or .npz."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from ..errors import ConfigError, FastgenError
from ..files import (
    exists,
    held,
    make_folder,
    open_ordinary,
    prepared,
    read_ordinary,
    remove,
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
    are any (-1 for a sample without one), and `request`, the record as JSON, which lies in NAME.npy.json beside a
    .npy file.

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

    def earlier(self, overwrite: bool) -> Record | None:
        return records.read(self._work / RECORD, overwrite) or self._whole(overwrite)

    def complete(self, record: Record) -> bool:
        return not exists(self._work)

    def _whole(self, overwrite: bool) -> Record | None:
        """The record of the finished file; None where there is none, or another's file."""
        if not self._zipped:
            record = records.read(self._beside, overwrite)
            return record if exists(self.path) else None
        with suppress(Exception), np.load(self.path) as archive:  # NumPy raises any type for another's file
            return records.decode(str(archive["request"]).encode(), self.path)
        return None

    @contextmanager
    def writing(
        self, request: Any, record: Record, shape: Sequence[int], overwrite: bool
    ) -> Iterator[Record]:
        self._request = request
        self._header = header((len(request.seeds), *shape))
        self._bytes = 4 * math.prod(shape)
        whole = self._whole(overwrite)
        mine = whole is not None and records.same(record, whole)
        intact = mine and self._intact(thoroughly=overwrite)
        if exists(self.path) and not (intact or overwrite):
            raise self._refuse(record, whole)
        if whole is not None and intact and not exists(self._work):
            self._finished = True
            yield whole
            return
        make_folder(self._work)
        with held(self._work) as alone:
            if not alone:
                raise ConfigError(
                    "another process writes it; wait, or choose another name", argument=self.path
                )
            earlier = records.read(self._work / RECORD, overwrite)
            if earlier is not None and not records.same(record, earlier):
                if not overwrite and (done := self._said_done(overwrite)):
                    kept = f"{done} of {len(records.seeds_of(earlier))} samples"
                    raise records.refuse(self._work, record, earlier, kept, "another name")
                earlier = None
            remove_leftovers(self._work, [RECORD, DONE, VALUES])
            remove_leftovers(self.path.parent, [self._beside.name])
            if whole is not None and intact:  # a kill in `finish` left some of the work
                self._finished = True
                self._clear()
                yield whole
                return
            self._prepare(record, earlier, overwrite)
            yield self._record

    def _refuse(self, record: Record, whole: Record | None) -> FastgenError:
        """The error for a file that is there already. whole: its record."""
        if whole is None:
            return ConfigError("exists already; choose another name, or --overwrite", argument=self.path)
        if records.same(record, whole):
            return ConfigError("is damaged; --overwrite draws it anew", argument=self.path)
        return records.refuse(
            self.path, record, whole, f"{len(records.seeds_of(whole))} samples", "another name"
        )

    def _intact(self, *, thoroughly: bool) -> bool:
        """Whether the finished file has all the numbers that its record promises. thoroughly: also read a .npz file."""
        size = len(self._header) + len(self._request.seeds) * self._bytes
        try:
            if not self._zipped:
                with open_ordinary(self.path, ConfigError) as file:
                    return _begins(file, self._header) and os.stat(self.path).st_size == size
            with zipfile.ZipFile(self.path) as archive:
                with archive.open(VALUES) as values:
                    right = _begins(values, self._header) and archive.getinfo(VALUES).file_size == size
                return right and not (thoroughly and archive.testzip())
        except Exception:  # zipfile raises any type of error for a damaged file
            return False

    def _prepare(self, record: Record, earlier: Record | None, overwrite: bool) -> None:
        """Go on with the numbers of `earlier`, which is of the same samples; where there are none, begin."""
        if earlier is not None and (done := min(self._said_done(overwrite), self._held())):
            self._record, self._done = earlier, done
            return
        for name in (DONE, RECORD):  # a kill in between leaves numbers without a record, which are begun anew
            with suppress(FileNotFoundError):
                os.unlink(self._work / name)
        self._record = record
        write_atomic(self._work / VALUES, self._header)
        write_atomic(self._work / RECORD, records.encode(record))

    def _said_done(self, overwrite: bool) -> int:
        """How many samples were written, as is said in the work."""
        path = self._work / DONE
        if not exists(path) or not exists(self._work / VALUES):
            return 0
        text = read_ordinary(path, MAX_DIGITS, ConfigError).decode(errors="replace").strip()
        if text.isdecimal():
            return int(text)
        if overwrite:
            return 0
        raise ConfigError("is damaged; --overwrite begins anew", argument=self._work)

    def _held(self) -> int:
        """How many samples the numbers in the work are, whatever is said: they may be cut, or gone."""
        path = self._work / VALUES
        if not exists(path):
            return 0
        with open_ordinary(path, ConfigError) as file:
            if not _begins(file, self._header):
                return 0
            return (os.fstat(file.fileno()).st_size - len(self._header)) // self._bytes

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
            replace_by(self.path, self._work / WHOLE)
        else:
            with prepared(self._beside, records.encode(self._record)) as name_record:
                remove(self.path)  # an older file must not lie beside this one's record, not for a moment
                name_record()
                replace_by(self.path, self._work / VALUES)
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
        labels = self._request.labels
        if any(label is not None for label in labels):
            arrays["labels"] = np.array([-1 if label is None else label for label in labels], dtype=np.int64)
        arrays["request"] = np.array(records.encode(self._record).decode().strip())
        write_whole(self._work / WHOLE, lambda file: np.savez(file, **arrays))


def header(shape: tuple[int, ...]) -> bytes:
    """The beginning of a .npy file of float32 numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _begins(file: IO[bytes], with_: bytes) -> bool:
    return file.read(len(with_)) == with_
