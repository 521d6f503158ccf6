"""Training data by name: a folder of images, pairs of images, an IDX, NPZ, NPY or CSV file, or a data set with a name.

What it gives is a ``Dataset`` (``fastgen.training.batch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from . import tables
from .arrays import Arrays, arrays, open_idx, open_npz
from .batch import Dataset
from .folders import ImageFolder, PairedFolders, SideBySide
from .tables import Rows

NAMED = ("digits", "two-moons", "mixture6")  # data sets that have a name
COUNTS = ("pictures", "rows")  # how many samples there are, in what `describe` says
DEFAULT_SIZE = (64, 64)  # height and width of the images of a folder
DEFAULT_CHANNELS = 3


def load(
    source: str,
    *,
    labels: str | None = None,
    target: str | None = None,
    side_by_side: bool = False,
    subset: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    background: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Open `source`: an image folder, an IDX, NPZ, NPY or CSV file, or a name out of `NAMED`: ``digits``
    (scikit-learn's 8x8 images), ``two-moons`` (2 columns), ``mixture6`` (6 columns).

    labels: an IDX file of labels; by default the file beside the images that MNIST's naming gives, if it is
    there. target: a folder whose images belong to those of the folder `source` that have the same names.
    side_by_side: each file of the folder `source` holds a pair, x at the left and the target at the right.
    subset: keep samples first..last (both included) of an in-memory source. size (height, width) and channels
    are needed by an image folder (default 64x64, 3) and must fit other images. background: the colour under
    transparent pixels of a folder's images, as CSS names it; by default white, of which a warning tells where there
    are such. class_names: the order of a folder's classes, where a model has one already. Raises DataError.
    """
    of_folder: dict[str, Any] = {"background": background, "class_names": class_names}
    try:
        dataset = _open(source, labels, target, side_by_side, size, channels, of_folder)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise DataError(f"cannot be read: {error.strerror or error}", argument=source) from error
    _check_size(dataset, source, size, channels)
    if background is not None and not isinstance(dataset, ImageFolder):
        raise DataError(
            f"{source} has no transparent pixels; only images in folders do", argument="background"
        )
    return dataset if subset is None else _subset(dataset, subset, source)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What tells one data set from another, as JSON types. Its keys are those of the state files of runs."""
    return {
        "pictures" if len(dataset.shape) == 3 else "rows": len(dataset),
        "shape": list(dataset.shape),
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
        **({"paired": True} if dataset.paired else {}),
    }


def _open(
    source: str,
    labels: str | None,
    target: str | None,
    side_by_side: bool,
    size: tuple[int, int] | None,
    channels: int | None,
    of_folder: dict[str, Any],
) -> Dataset:
    path = Path(source)
    if labels is not None and (source in NAMED or path.is_dir() or path.suffix in (".npz", ".npy", ".csv")):
        raise DataError(
            "has labels of its own, or none; only an IDX file takes a file of labels", argument=source
        )
    if target is not None or side_by_side:
        return _pairs(
            source, target, side_by_side, size or DEFAULT_SIZE, channels or DEFAULT_CHANNELS, of_folder
        )
    if source == "digits":
        return _digits()
    if source in NAMED:
        return tables.named(source)
    if path.is_dir():
        return ImageFolder(path, size or DEFAULT_SIZE, channels or DEFAULT_CHANNELS, **of_folder)
    if not path.exists():
        raise DataError(f"no such file or folder (nor one of {', '.join(NAMED)})", argument=source)
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix in (".npy", ".csv"):
        return tables.read_npy(path) if path.suffix == ".npy" else tables.read_csv(path)
    return open_idx(path, Path(labels) if labels else None)


def _pairs(
    source: str,
    target: str | None,
    side_by_side: bool,
    size: tuple[int, int],
    channels: int,
    of_folder: dict[str, Any],
) -> Dataset:
    if target is not None and side_by_side:
        raise DataError("the target is either a folder of its own or the right half", argument="side_by_side")
    for name in (source, target):
        if name is not None and not Path(name).is_dir():
            raise DataError("pairs of images come from folders, and this is no folder", argument=name)
    if target is None:
        return SideBySide(Path(source), size, channels, **of_folder)
    return PairedFolders(Path(source), Path(target), size, channels, **of_folder)


def _check_size(dataset: Dataset, source: str, size: tuple[int, int] | None, channels: int | None) -> None:
    if len(dataset.shape) == 1:
        if size is not None or channels is not None:
            raise DataError(
                f"holds rows of {dataset.shape[0]} numbers, which have no size or channels", argument=source
            )
    elif size is not None and tuple(dataset.shape[1:]) != tuple(size):
        raise DataError(
            f"its images are {dataset.shape[1]}x{dataset.shape[2]}, not {size[0]}x{size[1]}", argument=source
        )
    elif channels is not None and dataset.shape[0] != channels:
        raise DataError(f"its images have {dataset.shape[0]} channels, not {channels}", argument=source)


def _digits() -> Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("needs scikit-learn: pip install scikit-learn", argument="digits") from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return arrays(images[:, None], digits.target, "digits")


def _subset(dataset: Dataset, subset: tuple[int, int], source: str) -> Dataset:
    if not isinstance(dataset, Arrays | Rows):
        raise DataError("a subset can be taken of files, not of an image folder", argument=source)
    first, last = subset
    if not 0 <= first <= last < len(dataset):
        raise DataError(f"subset {first}-{last} does not lie within 0-{len(dataset) - 1}", argument=source)
    return dataset.part(slice(first, last + 1))
