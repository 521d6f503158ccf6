"""Rows of numbers to train on: CSV and NPY files, arrays of an NPZ file, and two distributions with known densities."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import open_ordinary
from . import synthetic
from .batch import Batch

MAX_COLUMNS = 4096  # of a flow's features
MAX_CSV_BYTES = 1 << 30
COUNT = 10_000  # rows of a distribution that has a name
# float32 keeps 24 bits: a column must vary by at least this share of its size, or its values become steps of a stair.
SMALLEST_SPREAD = 2.0**-14
LARGEST = 1e18  # its square, which variances are made of, fits float32
SMALLEST = 1e-30  # one over the deviation of such a column, which standardises it, fits float32 with room for factors


@dataclass
class Rows:
    """Rows held in memory: float32 [N, D], with int64 labels [N] or None."""

    values: Tensor
    labels: Tensor | None = None
    class_names: list[str] | None = None
    paired: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.shape: tuple[int, ...] = (int(self.values.shape[1]),)
        self.num_classes = None if self.labels is None else int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices, device="cpu")
        return Batch(self.values[chosen], None if self.labels is None else self.labels[chosen])

    def part(self, keep: slice) -> Rows:
        """Some of the rows."""
        return Rows(self.values[keep], None if self.labels is None else self.labels[keep], self.class_names)


def named(name: str) -> Rows:
    """`COUNT` rows of ``two-moons`` or ``mixture6``, always the same."""
    draw = {"two-moons": synthetic.two_moons, "mixture6": synthetic.mixture6}[name]
    return Rows(torch.from_numpy(draw(COUNT, seed=0).astype(np.float32)))


def read_csv(path: Path) -> Rows:
    """A table with commas between numbers; a first line of names is skipped. Raises DataError."""
    with open_ordinary(path, DataError) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_CSV_BYTES:
            raise DataError(f"{size} bytes are more than {MAX_CSV_BYTES}; save it as .npy", argument=path)
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"is not text in UTF-8: {error}", argument=path) from error
    head, _, rest = text.partition("\n")
    try:
        skip = 0 if all(_number(cell) for cell in head.split(",")) else 1
        if not (rest if skip else text).strip():
            raise ValueError("it is empty")
        values = np.loadtxt(
            io.StringIO(text), delimiter=",", skiprows=skip, ndmin=2, dtype=np.float64, comments=None
        )
    except ValueError as error:
        raise DataError(f"expected numbers with commas between: {error}", argument=path) from error
    return rows(values, None, path)


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def rows(values: np.ndarray, labels: Tensor | None, where: object) -> Rows:
    """`values` [N, D] as data to train on. Raises DataError for what no density could be fitted to."""
    if values.ndim != 2 or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise DataError(
            f"expected rows of numbers [N, D], got an array {values.dtype} {list(values.shape)}",
            argument=where,
        )
    if not 2 <= values.shape[1] <= MAX_COLUMNS:
        raise DataError(
            f"has {values.shape[1]} columns; a flow needs at least 2 and takes {MAX_COLUMNS}", argument=where
        )
    values = values.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"row {row + 1}, column {column + 1} is {values[row, column]}; {len(wrong)} values are not "
            "finite: drop these rows, or fill them in",
            argument=where,
        )
    check_spread(values, where)
    return Rows(torch.from_numpy(values.astype(np.float32)), labels)


def check_spread(values: np.ndarray, where: object) -> None:
    """Whether each column of float64 `values` [N, D] varies by what float32 can hold. Raises DataError."""
    size = np.abs(values).max(axis=0)
    spread = (values / np.maximum(size, 1e-300)).std(axis=0) * size  # squares of large values would overflow
    for column in range(values.shape[1]):
        if (values[:, column] == values[0, column]).all():
            raise DataError(
                f"column {column + 1} is constant, and has no density; leave it out", argument=where
            )
        if size[column] < SMALLEST:
            raise DataError(
                f"column {column + 1} has no value beyond {size[column]:.3g}, and float32 needs {SMALLEST:g}; "
                "change the unit",
                argument=where,
            )
        if size[column] > LARGEST or spread[column] < size[column] * SMALLEST_SPREAD:
            raise DataError(
                f"column {column + 1} varies by {spread[column]:.3g} around values of {size[column]:.3g}: "
                "float32 cannot tell them apart; subtract an offset, or change the unit",
                argument=where,
            )


def read_npy(path: Path) -> Rows:
    """An array [N, D] of an NPY file, never a pickle. Raises DataError."""
    with open_ordinary(path, DataError) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
        except Exception as error:  # NumPy's header parser fails in any way there is on a damaged file
            raise DataError(f"cannot be read as NPY: {error}", argument=path) from error
        rest = os.fstat(file.fileno()).st_size - file.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != rest:
            raise DataError(
                f"its header says {dtype} {list(shape)}, and {rest} bytes follow: no plain numbers, or cut off",
                argument=path,
            )
        data = file.read(rest)
    return rows(np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C"), None, path)
