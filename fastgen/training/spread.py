"""How far samples of a data set are from one another, which decides the noise levels that a process needs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..errors import DataError
from .batch import Dataset

LOOKED_AT = 1024  # samples, evenly over the data set
VALUES = 2**25  # in all of them at most, float64: fewer of large images


class Spread(NamedTuple):
    """deviation: of all values around their mean. distance: the largest between two samples. In a network's units."""

    deviation: float
    distance: float


def measured(dataset: Dataset, shift_scale: tuple[torch.Tensor, torch.Tensor] | None, name: str) -> Spread:
    """The spread of up to `LOOKED_AT` samples, rounded to 4 digits: of images in [-1, 1], of rows standardised.

    shift_scale: of rows, float [D] each, what is taken off and what they are divided by. name: of the data, for the
    DataError where all samples are the same.
    """
    count = min(len(dataset), LOOKED_AT, max(2, VALUES // math.prod(dataset.shape)))
    x = dataset.batch([i * len(dataset) // count for i in range(count)]).x
    x = x.double() / 127.5 - 1 if x.dtype == torch.uint8 else x.double()
    if shift_scale is not None:
        x = (x - shift_scale[0]) / shift_scale[1]
    deviation, distance = float(x.std(correction=0)), float(torch.cdist(x.flatten(1), x.flatten(1)).max())
    if deviation == 0.0 or not math.isfinite(deviation):
        raise DataError("all of its values are the same; there is nothing to learn", argument=name)
    return Spread(_rounded(deviation), _rounded(distance))


def standard(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each column of rows, float64 [D]."""
    x = dataset.batch(range(len(dataset))).x.double()
    return x.mean(dim=0), x.std(dim=0, correction=0)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
