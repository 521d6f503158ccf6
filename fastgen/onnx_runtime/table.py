"""A solver's table as ``fastgen export`` writes it: the numbers that exported steps and samplers take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import shown
from ..errors import ConfigError

# Of `fastgen_kernels.reverse_step.row`, which cannot be imported without PyTorch; a test compares them.
ROW_WORDS, GUIDANCE = 32, 2
NOISE_WORDS = [11, 19]
ADJUSTED_WORDS = [28, 29, 30]
MAX_ROWS = 100_000


@dataclass(frozen=True)
class Table:
    """R evaluations. rows: float32 [R, 32]; slot, noise_step: int64 [R]; time: float32 [R]; initial_scale: [1]."""

    rows: NDArray[np.float32]
    slot: NDArray[np.int64]
    noise_step: NDArray[np.int64]
    time: NDArray[np.float32]
    initial_scale: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


def table_from_json(raw: Any, where: str) -> Table:
    """The table of a file's content; anybody may have written it. Raises ConfigError."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"expected a table, got {shown(raw)}", argument=where)
    try:
        rows, time = (np.array(raw[name], dtype=np.float32) for name in ("rows", "time"))
        slot, noise_step = (np.array(raw[name], dtype=np.int64) for name in ("slot", "noise_step"))
        scale = np.array([raw["initial_scale"]], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"expected a table with rows, slot, noise_step, time and initial_scale: {error}", argument=where
        ) from error
    count = len(time) if time.ndim == 1 else 0
    fits = (
        rows.shape == (count, ROW_WORDS)
        and slot.shape == noise_step.shape == (count,)
        and scale.shape == (1,)
    )
    if not fits or not 1 <= count <= MAX_ROWS:
        raise ConfigError(
            f"expected rows [R, {ROW_WORDS}] and R of the others, 1 to {MAX_ROWS}", argument=where
        )
    if not all(np.all(np.isfinite(values)) for values in (rows, time, scale)):
        raise ConfigError("expected finite numbers", argument=where)
    if np.any((slot < -1) | (slot > 3)) or np.any((noise_step < 0) | (noise_step >= 1 << 32)):
        raise ConfigError("expected slots from -1 to 3, noise steps from 0 to 2^32 - 1", argument=where)
    return Table(rows, slot, noise_step, time, scale)
