"""The pool of solver rows on the device: tables of all requests in one tensor, found by their first row."""

from __future__ import annotations

import torch

from fastgen_kernels.reverse_step.row import ROW_WORDS

from ...diffusion.table import Table, idle_row, pack

Weights = float | tuple[float, ...]  # of guidance: one, or one per row


class RowPool:
    """`rows` float32 [capacity, 32] and `times` float32 [capacity]; row 0 is the idle row.

    Requests with the same table and guidance share its rows. A table stays until its space is needed
    and nobody uses it, so that repeating a request uploads nothing. Where those in use leave no room the pool grows:
    `rows` and `times` are then other tensors, with every row in its old place.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = torch.zeros(capacity, ROW_WORDS, device=device)
        self.times = torch.zeros(capacity, device=device)
        self.rows[0] = idle_row(torch.float32).to(device)
        self._placed: dict[tuple, _Placed] = {}
        self._end = 1  # rows from here on are free

    @property
    def capacity(self) -> int:
        return len(self.rows)

    def acquire(self, table: Table, scale: Weights, rescale: float) -> int:
        """First row of `table` with this guidance, held until `release`. ValueError where ``pack`` refuses it."""
        key = (id(table), scale, rescale)
        placed = self._placed.get(key)
        if placed is None:
            length = len(table)
            start = self._room(length)
            rows, times = pack(table, start, scale, guidance_rescale=rescale)
            if start + length > self.capacity:
                self._grow(start + length)
            self.rows[start : start + length] = rows.to(self.rows.device)
            self.times[start : start + length] = times.to(self.times.device)
            placed = self._placed[key] = _Placed(start, length, table)
            self._end = max(self._end, start + length)
        placed.users += 1
        return placed.start

    def release(self, table: Table, scale: Weights, rescale: float) -> None:
        """Undo one `acquire`."""
        self._placed[id(table), scale, rescale].users -= 1

    def _room(self, length: int) -> int:
        """Where `length` rows may go, perhaps beyond the capacity; unused tables are dropped when it is full."""
        if self._end + length > self.capacity:
            self._placed = {key: p for key, p in self._placed.items() if p.users}
            start = 1
            for placed in sorted(self._placed.values(), key=lambda p: p.start):
                if placed.start - start >= length:
                    return start
                start = placed.start + placed.length
            self._end = start
        return self._end

    def _grow(self, least: int) -> None:
        capacity = max(2 * self.capacity, least)
        rows, times = self.rows.new_zeros(capacity, ROW_WORDS), self.times.new_zeros(capacity)
        rows[: self.capacity], times[: self.capacity] = self.rows, self.times
        self.rows, self.times = rows, times


class _Placed:
    def __init__(self, start: int, length: int, table: Table) -> None:
        self.start, self.length, self.users = start, length, 0
        self.table = table  # keeps id(table) taken while the rows are here
