"""How noisy the state of a table's run is, row by row: what image to image and inpainting mix an image in with."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ..errors import ConfigError
from .points import Point
from .processes import AnyProcess
from .table import Table


@lru_cache(maxsize=256)
def state_levels(table: Table, process: AnyProcess) -> np.ndarray:
    """(alpha, sigma) of the state x = alpha x_0 + sigma epsilon before each row, and (1, 0) after the last.

    Returns float64 [R + 1, 2], read-only. The table is one of `process`, and may hold its state in a scale of its own:
    that is what its input_scale undoes. Raises ConfigError where the table does not know its noise levels.
    """
    if not len(table) or np.isnan(table.sigma).any():
        raise ConfigError(
            f"the table {table.name} does not know its noise levels, by which an image is mixed in; take a named "
            "solver",
            argument="solver",
        )
    found = np.empty((len(table) + 1, 2))
    for i, ratio in enumerate(table.sigma):
        point = _point(process, float(ratio))
        scale = point.input_scale / float(table.input_scale[i])
        found[i] = point.alpha * scale, point.sigma * scale
    found[-1] = 1.0, 0.0
    found.flags.writeable = False
    return found


def _point(process: AnyProcess, ratio: float) -> Point:
    """The point of `process` with sigma / alpha = `ratio`."""
    if math.isinf(ratio):  # pure noise
        return Point(0.0, 1.0, scale=1.0)
    # Levels are sigma / scale, and the scale is alpha on every process but flow matching, whose alpha is 1 - sigma.
    trial = process.point(min(ratio, 0.5)) if ratio > 0 else None
    if trial is not None and trial.scale != trial.alpha:
        return process.point(ratio / (1.0 + ratio))
    return process.point(ratio)
