"""Images in memory, and the files that hold them as arrays: IDX (MNIST's format) and NPZ."""

from __future__ import annotations

import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import open_ordinary
from . import tables
from .batch import Batch
from .tables import Rows

# What a compressed file may expand to. Images seldom shrink by more than 50; zeros, as in a bomb, by 1000.
MAX_EXPANSION = 200
ALWAYS_ALLOWED = 1 << 28  # bytes, whatever the expansion
MAX_LABEL = 1_000_000 - 2  # a network embeds at most a million classes, and one of them is "no label"
IDX_DTYPE_UINT8 = 0x08  # third byte of an IDX file: the type of its entries


@dataclass
class Arrays:
    """Images held in memory: uint8 [N, C, H, W], with int64 labels [N] or None."""

    images: Tensor
    labels: Tensor | None = None
    class_names: list[str] | None = None
    paired: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.shape: tuple[int, ...] = tuple(int(n) for n in self.images.shape[1:])
        self.num_classes = None if self.labels is None else int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices, device="cpu")
        return Batch(self.images[chosen], None if self.labels is None else self.labels[chosen])

    def part(self, keep: slice) -> Arrays:
        """Some of the images."""
        return Arrays(self.images[keep], None if self.labels is None else self.labels[keep], self.class_names)


def read_idx(path: str | Path) -> np.ndarray:
    """An array from an IDX file of unsigned bytes, gzipped or not (LeCun et al., the MNIST format)."""
    path = Path(path)
    with open_ordinary(path, DataError) as file:
        size = os.fstat(file.fileno()).st_size
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source: Any = gzip.GzipFile(fileobj=file) if packed else file
        try:
            start = source.read(4)
            if (
                len(start) < 4
                or start[:2] != b"\0\0"
                or start[2] != IDX_DTYPE_UINT8
                or not 1 <= start[3] <= 4
            ):
                raise DataError("not an IDX file of unsigned bytes (nor a folder, nor .npz)", argument=path)
            sizes = source.read(4 * start[3])
            if len(sizes) < 4 * start[3]:
                raise DataError("ends within its header", argument=path)
            shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=">u4"))
            claimed = math.prod(shape)
            if packed:
                _check_expansion(claimed, size, path)
            elif claimed != size - len(start) - len(sizes):
                raise DataError(
                    f"header says {claimed} bytes of data, the file has {size - len(start) - len(sizes)}",
                    argument=path,
                )
            data = source.read(claimed)
            more = len(source.read(1))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be read: {error}", argument=path) from error
    if len(data) != claimed or more:
        raise DataError(
            f"header says {claimed} bytes of data, the file has {'more' if more else len(data)}",
            argument=path,
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _check_expansion(claimed: int, size: int, where: Any) -> None:
    if claimed > max(ALWAYS_ALLOWED, MAX_EXPANSION * size):
        raise DataError(
            f"{size} bytes expand to {claimed}; unpack it yourself if you trust it", argument=where
        )


def open_idx(path: Path, labels_path: Path | None) -> Arrays:
    """Images [N, H, W] of an IDX file; labels of another one, by default the one beside it by MNIST's naming.

    Raises DataError.
    """
    images = read_idx(path)
    if images.ndim != 3:
        raise DataError(
            f"expected images [N, H, W], got an array of shape {list(images.shape)}", argument=path
        )
    if labels_path is None:
        sibling = path.with_name(re.sub(r"images([-.])idx3", r"labels\1idx1", path.name))
        labels_path = sibling if sibling != path and sibling.exists() else None
    labels = None if labels_path is None else read_idx(labels_path)
    return arrays(images[:, None], labels, path)


def open_npz(path: Path) -> Arrays | Rows:
    """Images, or rows of a table, of an NPZ file, with labels if it has any. Raises DataError."""
    try:
        with open_ordinary(path, DataError) as file, zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            images_name = next((n for n in ("images", "x", "x_train", "arr_0") if n in names), None)
            labels_name = next((n for n in ("labels", "y", "y_train", "arr_1") if n in names), None)
            if images_name is None:
                raise DataError(
                    f"no array named images (or x, x_train); it has {', '.join(names[:20]) or 'nothing'}",
                    argument=path,
                )
            size = os.fstat(file.fileno()).st_size
            images = _member(archive, images_name, size, path)
            labels = None if labels_name is None else _member(archive, labels_name, size, path)
    except DataError:
        raise
    except Exception as error:  # zipfile and NumPy's header parser fail in any way there is on a damaged file
        raise DataError(f"cannot be read as NPZ: {error}", argument=path) from error
    if images.ndim == 2:
        rows = tables.rows(images, None, path)
        return Rows(rows.values, _labels(labels, len(images), path))
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return arrays(images, labels, path)


def _member(archive: zipfile.ZipFile, name: str, size: int, where: Path) -> np.ndarray:
    """An array of an NPZ file of `size` bytes. Its header must claim what the archive holds, and never a pickle."""
    info = archive.getinfo(f"{name}.npy")
    _check_expansion(info.file_size, size, f"{where}: {name}")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise DataError(f"{name}: NPY version {version} holds no plain numbers", argument=where)
        shape, fortran, dtype = read(file)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise DataError(
                f"cannot be read as NPZ: {name} holds {dtype} {list(shape)}, no numbers", argument=where
            )
        claimed = math.prod(shape) * dtype.itemsize
        if claimed != info.file_size - file.tell():
            raise DataError(
                f"{name}: its header says {claimed} bytes of data, "
                f"the archive has {info.file_size - file.tell()}",
                argument=where,
            )
        data = file.read(claimed)
        if len(data) != claimed:
            raise DataError(f"{name}: ends early", argument=where)
        file.read(1)  # at the end the checksum is compared
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def arrays(images: np.ndarray, labels: np.ndarray | None, where: Any) -> Arrays:
    """`images` and `labels` as data to train on; `where` names their source in errors. Raises DataError."""
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape or images.shape[1] not in (1, 3):
        raise DataError(
            f"expected uint8 images [N, H, W] or, with C = 1 or 3, [N, C, H, W] or [N, H, W, C]; got "
            f"{images.dtype} {list(images.shape)}",
            argument=where,
        )
    return Arrays(torch.from_numpy(np.array(images)), _labels(labels, len(images), where))


def _labels(labels: np.ndarray | None, count: int, where: Any) -> Tensor | None:
    """`labels` of `count` samples as int64 [count]. Raises DataError."""
    if labels is None:
        return None
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"expected {count} integer labels, got {labels.dtype} {list(labels.shape)}", argument=where
        )
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        raise DataError(
            f"labels must not be negative nor above {MAX_LABEL}, got {labels.min()} to {labels.max()}",
            argument=where,
        )
    return torch.from_numpy(labels.astype(np.int64))
