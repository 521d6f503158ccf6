"""Single numbers as callers give them: Python's, NumPy's, and arrays of no dimension."""

from __future__ import annotations

from typing import Any

import numpy as np


def scalar(value: Any) -> Any:
    """The one entry of an array of no dimension; anything else as it is."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def is_number(value: Any) -> bool:
    """Whether it is a real number; True and False are none."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
