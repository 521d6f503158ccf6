"""What a folder's images were made by, and of which files, so that a run can go on and never mixes two of them.

``.fastgen.json`` holds the record that images are made by now, ``.fastgen.log`` a line when one is begun and another
when it is there: the hash of its record, and of its source the hash of the path, size and time. Lines are only ever
added, so that a kill loses one at most.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import parse_json
from ..errors import ConfigError, WriteError
from ..files import exists, read_ordinary, write_atomic

RECORD, LOG = ".fastgen.json", ".fastgen.log"
MAX_RECORD, MAX_LOG = 1 << 20, 1 << 30  # bytes


class ImageLog:
    """Of `folder`, for images made by `record`. Raises ConfigError where the folder's own record is damaged.

    overwrite: a damaged one counts as none.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], overwrite: bool) -> None:
        self.folder = folder
        self._text = json.dumps(record, sort_keys=True)
        self._hash = _digest(self._text)
        self.earlier = _earlier(folder / RECORD, overwrite)
        self._claimed = self.same
        self._entries: dict[str, dict[str, Any]] = {}  # of the last line of each image
        for line in _lines(folder / LOG):
            self._entries[line["image"]] = line

    @property
    def same(self) -> bool:
        """Whether the folder's images are made by this record already."""
        return self.earlier is not None and json.dumps(self.earlier, sort_keys=True) == self._text

    def made(self, target: Path) -> bool:
        """Whether an image, or the sheet, was made here, by whatever record."""
        return self._name(target) in self._entries

    def done(self, target: Path, source: Path) -> bool:
        """Whether an image is there that this record made of this very source, as the source is now."""
        entry = self._entries.get(self._name(target))
        return entry is not None and entry == self._line(target, source, done=True) and exists(target)

    def _claim(self) -> None:
        """The folder's images are made by this record from now on."""
        if not self._claimed:
            write_atomic(self.folder / RECORD, (self._text + "\n").encode())
            self._claimed = True

    def add(self, target: Path, source: Path | None, *, done: bool) -> None:
        """Note that an image is begun, or is there; the first one claims the folder. source: None for a sheet.

        Raises WriteError.
        """
        self._claim()
        line = self._line(target, source, done)
        path = self.folder / LOG
        try:
            with path.open("ab") as file:
                if file.tell() and not _ends_whole(path):
                    file.write(b"\n")
                file.write((json.dumps(line) + "\n").encode())
        except OSError as problem:
            error = WriteError(f"cannot be written: {problem.strerror}; make room", argument=path)
            error.errno = problem.errno
            raise error from problem
        self._entries[line["image"]] = line

    def _line(self, target: Path, source: Path | None, done: bool) -> dict[str, Any]:
        line: dict[str, Any] = {"image": self._name(target), "done": done, "by": self._hash}
        try:
            if source is not None:
                found = os.stat(source)
                of = [_digest(str(source.absolute())), found.st_size, found.st_mtime_ns]
                line["of"] = of
        except OSError:  # reading it says why
            line["of"] = None
        return line

    def _name(self, target: Path) -> str:
        return os.path.relpath(target.absolute(), self.folder.absolute())


def differences(earlier: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What of a record is another one's, in words: ``seed 3, norm_mode 'running'``."""
    was, now = (_flat(values) for values in (earlier, record))
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    return ", ".join(f"{name.rpartition('.')[2]} {was.get(name)!r}" for name in names)[:200]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _earlier(path: Path, overwrite: bool) -> dict[str, Any] | None:
    if not exists(path):
        return None
    try:
        found = parse_json(read_ordinary(path, MAX_RECORD, ConfigError), str(path))
    except ConfigError:
        if overwrite:
            return None
        raise
    return found if isinstance(found, dict) else {"record": found}


def _lines(path: Path) -> Sequence[dict[str, Any]]:
    """Those that are whole; a kill may have cut the last one."""
    if not exists(path):
        return []
    found = []
    for line in read_ordinary(path, MAX_LOG, ConfigError).decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("image"), str):
            found.append(value)
    return found


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
