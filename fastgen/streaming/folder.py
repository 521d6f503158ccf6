"""One image per file, in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..files import held, make_folder, open_ordinary, remove_leftovers, write_atomic
from ..images import Range, save_image, to_pictures
from . import record as records
from .output import Output
from .record import Record

RECORD = ".fastgen.json"
RECORD_ONLY = ("batch", "device", "settings")  # what images do not keep of it
DIGITS = 5


def file_names(seeds: Sequence[int]) -> list[str]:
    """One per sample: its number keeps two samples of one seed apart, and the order as asked."""
    digits = max(DIGITS, len(str(len(seeds) - 1)))
    return [f"{i:0{digits}d}-seed{seed}.png" for i, seed in enumerate(seeds)]


class Folder(Output):
    """A folder of PNG files, each with the request that repeats it. value_range: of the images, see ``Engine``."""

    def __init__(self, path: Path, value_range: Range | None) -> None:
        super().__init__(path)
        self._range = value_range
        self._there: set[str] = set()
        self._names: list[str] = []
        self._request: Any = None
        self._metadata: Record = {}

    def check(self, shape: Sequence[int]) -> None:
        check_picture(shape, self.path)

    def earlier(self, overwrite: bool) -> Record | None:
        return records.read(self.path / RECORD, overwrite)

    def complete(self, record: Record) -> bool:
        return self._visible().issuperset(file_names(records.seeds_of(record)))

    @contextmanager
    def writing(
        self, request: Any, record: Record, shape: Sequence[int], overwrite: bool
    ) -> Iterator[Record]:
        self.check(shape)
        self._request, self._names = request, file_names(request.seeds)
        make_folder(self.path)
        with held(self.path) as alone:
            if not alone:
                raise ConfigError(
                    "another process writes into it; wait, or choose another folder", argument=self.path
                )
            earlier = self.earlier(overwrite)
            if earlier is None or not records.same(record, earlier):
                self._claim(record, earlier, overwrite)
                earlier = record
            remove_leftovers(self.path, [RECORD, *self._names])
            self._there = self._visible()
            if overwrite:
                size = (shape[2], shape[1])
                damaged = [n for n in self._names if n in self._there and not is_whole(self.path / n, size)]
                self._there.difference_update(damaged)
            # Of the record that began, so that all files say the same model.
            self._metadata = {name: value for name, value in earlier.items() if name not in RECORD_ONLY}
            yield earlier

    def _claim(self, record: Record, earlier: Record | None, overwrite: bool) -> None:
        """Make the folder that of `record`, which it is not yet."""
        there = self._visible()
        if earlier is not None:
            old = [name for name in file_names(records.seeds_of(earlier)) if name in there]
            if old and not overwrite:
                of = f"{len(old)} of {len(records.seeds_of(earlier))} images"
                raise records.refuse(self.path, record, earlier, of, "another folder")
            for name in old:
                with suppress(FileNotFoundError):
                    os.unlink(self.path / name)
            there.difference_update(old)
        if there and not overwrite:
            raise ConfigError(
                f"holds something else ({min(there)}); choose an empty or a new folder, or --overwrite to write "
                "beside it",
                argument=self.path,
            )
        if overwrite:  # files of the names to come, which no record vouches for
            for name in there.intersection(self._names):
                os.unlink(self.path / name)
        write_atomic(self.path / RECORD, records.encode(record))

    def _visible(self) -> set[str]:
        return {name for name in os.listdir(self.path) if not name.startswith(".")}

    def done(self, start: int, stop: int) -> bool:
        return self._there.issuperset(self._names[start:stop])

    def write(self, start: int, samples: Tensor) -> None:
        images = to_pictures(samples, self._range)
        for i, image in enumerate(images, start):
            if self._names[i] not in self._there:
                metadata = {**self._metadata, "request": self._request.only(i).to_dict()}
                save_image(image, self.path / self._names[i], metadata=metadata)
                self._there.add(self._names[i])

    def finish(self) -> list[Path]:
        return [self.path / name for name in self._names]


def check_picture(shape: Sequence[int], where: object) -> None:
    """Whether a sample of `shape` is a grey or RGB image. Raises ConfigError."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(
            f"samples of {'x'.join(map(str, shape))} are no grey or RGB images; write them as numbers: a name that "
            "ends in .npz or .npy",
            argument=where,
        )


def is_whole(path: Path, size: tuple[int, int]) -> bool:
    """Whether a file is a PNG of `size` (width, height), to its end and with the checksums that are in it."""
    from PIL import Image

    try:
        with open_ordinary(path, ConfigError) as file, Image.open(file, formats=["PNG"]) as image:
            image.verify()
            return image.size == size
    except Exception:  # Pillow raises any type of error for a damaged file
        return False
