"""The pool of solver rows on the device: tables of all requests in one tensor, found by their first row."""

from __future__ import annotations

import numpy as np
import torch

from fastgen_kernels.reverse_step import row
from fastgen_kernels.reverse_step.row import ROW_WORDS

from ...diffusion.table import Table, idle_row, pack
from .stretches import Stretches

Weights = float | tuple[float, ...]  # of guidance: one, or one per row


class RowPool:
    """`rows` float32 [capacity, 32] and `times` float32 [capacity]; row 0 is the idle row.

    `levels` float32 [capacity, 4]: for ``known_region``, alpha and sigma of the state that the row leaves, the scale of
    the next input, and the `step` of the noise counter. alpha is NaN where nothing is known.

    Requests with the same table and guidance share its rows. A table stays until its space is needed
    and nobody uses it, so that repeating a request uploads nothing. Where those in use leave no room the pool grows:
    `rows`, `times` and `levels` are then other tensors, with every row in its old place.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = torch.zeros(capacity, ROW_WORDS, device=device, dtype=torch.float32)
        self.times = torch.zeros(capacity, device=device, dtype=torch.float32)
        self.levels = torch.full((capacity, 4), torch.nan, device=device, dtype=torch.float32)
        self.rows[0] = idle_row(torch.float32).to(device)
        self._stretches = Stretches(1)

    @property
    def capacity(self) -> int:
        return len(self.rows)

    def acquire(
        self,
        table: Table,
        scale: Weights,
        rescale: float,
        levels: np.ndarray | None = None,
        fresh: bool = True,
    ) -> int:
        """First row of `table` with this guidance, held until `release`. ValueError where ``pack`` refuses it.

        levels, fresh: see ``Known``.
        """
        key = (id(table), scale, rescale, id(levels), fresh)
        start = self._stretches.hold(key)
        if start is None:
            length = len(table)
            start = self._stretches.room(length, self.capacity)
            rows, times = pack(table, start, scale, guidance_rescale=rescale)
            if start + length > self.capacity:
                self._grow(start + length)
            self.rows[start : start + length] = rows.to(self.rows.device)
            self.times[start : start + length] = times.to(self.times.device)
            self.levels[start : start + length] = _levels(rows, levels, fresh).to(self.levels.device)
            self._stretches.place(key, start, length, (table, levels))
        return start

    def release(
        self,
        table: Table,
        scale: Weights,
        rescale: float,
        levels: np.ndarray | None = None,
        fresh: bool = True,
    ) -> None:
        """Undo one `acquire`."""
        self._stretches.release((id(table), scale, rescale, id(levels), fresh))

    def _grow(self, least: int) -> None:
        capacity = max(2 * self.capacity, least)
        rows, times = self.rows.new_zeros(capacity, ROW_WORDS), self.times.new_zeros(capacity)
        rows[: self.capacity], times[: self.capacity] = self.rows, self.times
        levels = torch.full((capacity, 4), torch.nan, device=rows.device, dtype=torch.float32)
        levels[: self.capacity] = self.levels
        self.rows, self.times, self.levels = rows, times, levels


def _levels(rows: torch.Tensor, levels: np.ndarray | None, fresh: bool) -> torch.Tensor:
    """Of packed `rows`, float32 [R, 4]."""
    found = torch.full((len(rows), 4), torch.nan, dtype=torch.float32, device="cpu")
    if levels is not None:
        found[:, :2] = torch.from_numpy(levels[1:].astype(np.float32))
        found[:, 2] = rows[:, row.NEXT_SCALE]
        found[:, 3] = torch.arange(1, len(rows) + 1, device="cpu") if fresh else 0.0
    return found
