"""Training data: pictures in a folder, an IDX or NPZ file, tables, and data sets that have a name.

Every source answers ``batch(indices) -> (samples, int64 [B] or None)``, pictures uint8 [B, C, H, W] or rows of numbers
float32 [B, D]; which indices come when is the training loop's business, so that an interrupted run can go on exactly
where it stopped.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import open_ordinary
from . import tables
from .tables import Rows

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# Decided by content, not by name: Pillow would hand a PostScript file in disguise to another program.
PICTURE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF")
NAMED = ("digits", "two-moons", "mixture6")  # data sets that have a name
MAX_PIXELS = 1 << 26  # of one picture: eight of them are decoded at a time, into 4 bytes a pixel or more
# What a compressed file may expand to. Pictures seldom shrink by more than 50; zeros, as in a bomb, by 1000.
MAX_EXPANSION = 200
ALWAYS_ALLOWED = 1 << 28  # bytes, whatever the expansion
MAX_LABEL = 1_000_000 - 2  # a network embeds at most a million classes, and one of them is "no label"
IDX_DTYPE_UINT8 = 0x08  # third byte of an IDX file: the type of its entries


class Dataset(Protocol):
    """What the training loop needs of a source of samples."""

    shape: tuple[int, ...]  # channels, height, width; or columns
    num_classes: int | None  # None where the source has no labels
    class_names: list[str] | None

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]: ...


@dataclass
class Arrays:
    """Pictures held in memory: uint8 [N, C, H, W], with int64 labels [N] or None."""

    images: Tensor
    labels: Tensor | None = None
    class_names: list[str] | None = None

    def __post_init__(self) -> None:
        self.shape = tuple(int(n) for n in self.images.shape[1:])
        self.num_classes = None if self.labels is None else int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], None if self.labels is None else self.labels[chosen]

    def part(self, keep: slice) -> Arrays:
        """Some of the pictures."""
        return Arrays(self.images[keep], None if self.labels is None else self.labels[keep], self.class_names)


class PictureFolder:
    """Pictures in a folder, decoded when asked for, resized and centre-cropped to (height, width).

    Where the pictures lie in sub-folders, the names of the first level are the classes, in sorted order.
    """

    def __init__(self, folder: Path, size: tuple[int, int], channels: int) -> None:
        if channels not in (1, 3):
            raise DataError(
                f"a picture folder gives 1 (grey) or 3 (RGB), not {channels}", argument="channels"
            )
        self.files = sorted(
            p for p in folder.rglob("*") if _is_picture(p.relative_to(folder)) and p.is_file()
        )
        if not self.files:
            raise DataError(f"no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) in it", argument=folder)
        self.shape: tuple[int, ...] = (channels, *size)
        tops = [p.relative_to(folder).parts for p in self.files]
        outside = [parts[0] for parts in tops if len(parts) == 1]
        if outside and len(outside) < len(tops):
            raise DataError(
                f"{len(outside)} pictures lie beside folders of pictures, the first is {outside[0]}; "
                "put all of them into folders (the classes), or none",
                argument=folder,
            )
        if not outside:
            self.class_names: list[str] | None = sorted({parts[0] for parts in tops})
            for name in self.class_names:
                check_name(name, str(folder / name))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels: Tensor | None = torch.tensor([number[parts[0]] for parts in tops])
            self.num_classes: int | None = len(number)
        else:
            self.class_names = self.labels = self.num_classes = None
        self._pool = ThreadPoolExecutor(8)  # Pillow releases the GIL while it decodes

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        images = torch.stack(list(self._pool.map(self._decode, [self.files[i] for i in indices])))
        return images, None if self.labels is None else self.labels[torch.as_tensor(indices)]

    def _decode(self, path: Path) -> Tensor:
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        try:
            with open_ordinary(path, DataError) as data, Image.open(data, formats=PICTURE_FORMATS) as file:
                if math.prod(file.size) > MAX_PIXELS:
                    raise DataError(
                        f"{file.width} x {file.height} are more than {MAX_PIXELS} pixels; scale it down",
                        argument=path,
                    )
                if file.mode.startswith("I"):
                    raise DataError("has 16 or 32 bits a pixel; convert it to 8 bits first", argument=path)
                picture = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
                picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
        except DataError:
            raise
        except Exception as error:  # Pillow's decoders fail in any way there is on a damaged file
            raise DataError(f"cannot be read as a picture: {error}", argument=path) from error
        pixels = np.asarray(picture, dtype=np.uint8).reshape(height, width, channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _is_picture(path: Path) -> bool:
    """Not a thumbnail folder's or an archive's leftovers: names that begin with a dot or ``__`` are skipped."""
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return path.suffix.lower() in PICTURE_SUFFIXES and not hidden


def load(
    source: str,
    *,
    labels: str | None = None,
    subset: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """Open `source`: a picture folder, an IDX, NPZ, NPY or CSV file, or a name out of `NAMED`: ``digits``
    (scikit-learn's 8x8 pictures), ``two-moons`` (2 columns), ``mixture6`` (6 columns).

    labels: an IDX file of labels; by default the file beside the pictures that MNIST's naming gives, if it is
    there. subset: keep samples first..last (both included) of an in-memory source. size (height, width) and
    channels are needed by a picture folder (default 64x64, 3) and must fit other pictures. Raises DataError.
    """
    try:
        return _load(source, labels, subset, size, channels)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise DataError(f"cannot be read: {error.strerror or error}", argument=source) from error


def check_name(name: str, where: str) -> None:
    """Names are kept with the run and the model, in UTF-8. Raises DataError where that cannot hold them."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name!r} is not UTF-8, as names that are kept must be; rename it", argument=where
        ) from error


def _load(
    source: str,
    labels: str | None,
    subset: tuple[int, int] | None,
    size: tuple[int, int] | None,
    channels: int | None,
) -> Dataset:
    path = Path(source)
    if labels is not None and (source in NAMED or path.is_dir() or path.suffix in (".npz", ".npy", ".csv")):
        raise DataError(
            "has labels of its own, or none; only an IDX file takes a file of labels", argument=source
        )
    if source == "digits":
        dataset: Dataset = _digits()
    elif source in NAMED:
        dataset = tables.named(source)
    elif path.is_dir():
        dataset = PictureFolder(path, size or (64, 64), channels or 3)
    elif not path.exists():
        raise DataError(f"no such file or folder (nor one of {', '.join(NAMED)})", argument=source)
    elif path.suffix == ".npz":
        dataset = _npz(path)
    elif path.suffix in (".npy", ".csv"):
        dataset = tables.read_npy(path) if path.suffix == ".npy" else tables.read_csv(path)
    else:
        dataset = _idx(path, Path(labels) if labels else None)
    if len(dataset.shape) == 1:
        if size is not None or channels is not None:
            raise DataError(
                f"holds rows of {dataset.shape[0]} numbers, which have no size or channels", argument=source
            )
    elif size is not None and tuple(dataset.shape[1:]) != tuple(size):
        raise DataError(
            f"its pictures are {dataset.shape[1]}x{dataset.shape[2]}, not {size[0]}x{size[1]}",
            argument=source,
        )
    elif channels is not None and dataset.shape[0] != channels:
        raise DataError(f"its pictures have {dataset.shape[0]} channels, not {channels}", argument=source)
    return dataset if subset is None else _subset(dataset, subset, source)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What tells one data set from another, as JSON types."""
    return {
        "pictures" if len(dataset.shape) == 3 else "rows": len(dataset),
        "shape": list(dataset.shape),
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
    }


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


def _idx(path: Path, labels_path: Path | None) -> Arrays:
    images = read_idx(path)
    if images.ndim != 3:
        raise DataError(
            f"expected pictures [N, H, W], got an array of shape {list(images.shape)}", argument=path
        )
    if labels_path is None:
        sibling = path.with_name(re.sub(r"images([-.])idx3", r"labels\1idx1", path.name))
        labels_path = sibling if sibling != path and sibling.exists() else None
    labels = None if labels_path is None else read_idx(labels_path)
    return _arrays(images[:, None], labels, path)


def _npz(path: Path) -> Arrays | Rows:
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
    return _arrays(images, labels, path)


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


def _digits() -> Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("needs scikit-learn: pip install scikit-learn", argument="digits") from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _arrays(images[:, None], digits.target, "digits")


def _arrays(images: np.ndarray, labels: np.ndarray | None, where: Any) -> Arrays:
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape or images.shape[1] not in (1, 3):
        raise DataError(
            f"expected uint8 pictures [N, H, W] or, with C = 1 or 3, [N, C, H, W] or [N, H, W, C]; got "
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


def _subset(dataset: Dataset, subset: tuple[int, int], source: str) -> Dataset:
    if not isinstance(dataset, Arrays | Rows):
        raise DataError("a subset can be taken of files, not of a picture folder", argument=source)
    first, last = subset
    if not 0 <= first <= last < len(dataset):
        raise DataError(f"subset {first}-{last} does not lie within 0-{len(dataset) - 1}", argument=source)
    return dataset.part(slice(first, last + 1))
