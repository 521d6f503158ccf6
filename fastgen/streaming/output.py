"""A place that samples are streamed to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..files import exists
from .record import Record


class Output(ABC):
    """Files for `n` samples, drawn in batches. Made by :func:`open_output`.

    path: the folder, or the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def check(self, shape: Sequence[int]) -> None:
        """Before anything is drawn: whether samples of `shape` can be written here. Raises ConfigError."""

    @abstractmethod
    def earlier(self, overwrite: bool) -> Record | None:
        """The record of what is here already, finished or cut short. A damaged one raises ConfigError.

        overwrite: a damaged one counts as none.
        """

    @abstractmethod
    def complete(self, record: Record) -> bool:
        """Whether all samples of `record`, which `earlier` returned, are here."""

    def seed_to_go_on(self, overwrite: bool) -> int | None:
        """The first seed of what is here, for a request that names no seeds; None where it is to begin anew.

        overwrite: what is complete is to be replaced.
        """
        record = self.earlier(overwrite)
        if record is None or (overwrite and self.complete(record)):
            return None
        seed = record["request"].get("seed")
        return seed if type(seed) is int else None

    @abstractmethod
    @contextmanager
    def writing(
        self, request: Any, record: Record, shape: Sequence[int], overwrite: bool
    ) -> Iterator[Record]:
        """Within the block samples can be written; yields the record to go by, which says how many at a time.

        Raises ConfigError where the place holds anything else than the beginning of these samples, or damaged files,
        unless `overwrite` says to replace them; WriteError.
        """

    @abstractmethod
    def done(self, start: int, stop: int) -> bool:
        """Whether these samples are written."""

    @abstractmethod
    def write(self, start: int, samples: Tensor) -> None:
        """Write the samples [b, *shape] of the numbers from `start` on. Raises WriteError, and keeps all before."""

    @abstractmethod
    def finish(self) -> list[Path]:
        """Once all are written: what is there. Raises WriteError."""


def open_output(path: str | Path, value_range: tuple[float, float] | None = None) -> Output:
    """The output that `path` means: .npy or .npz, else a folder of PNG files.

    Raises ConfigError for another suffix, unless a folder of that name is there, and where there is no place for it.

    value_range: of images, see ``Engine``.
    """
    from .arrays import ARRAYS, ArrayFile
    from .folder import Folder

    if not str(path):
        raise ConfigError('expected a name, got ""; the current folder is "."', argument="path")
    path = Path(path)
    if not exists(parent := path.absolute().parent):
        raise ConfigError(f"there is no folder {parent}; make it first", argument=path)
    if path.suffix.lower() in ARRAYS and not path.is_dir():
        return ArrayFile(path)
    if (path.suffix and not path.is_dir()) or (path.exists() and not path.is_dir()):
        raise ConfigError(
            f"expected a folder, for an image per file, or a name that ends in {' or '.join(ARRAYS)}{_made(path)}",
            argument=path,
        )
    return Folder(path, value_range)


def _made(path: Path) -> str:
    """What to do where `path`, whose suffix is of no known format, is meant as the name of a new folder."""
    return "" if path.exists() else "; a new folder with a dot in its name has to be made first"
