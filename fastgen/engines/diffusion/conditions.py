"""What a network makes of time and label, computed once for all steps of a solver's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...diffusion.table import Table
from .stretches import Stretches

LIMIT = 256 << 20  # bytes of a table
ROWS_AT_A_TIME = 1024
FIRST_ENTRIES = 128


@runtime_checkable
class Conditioned(Protocol):
    """A network in two parts: F(x, t, label) = denoise(x, condition(t, label, dtype), t).

    condition returns [B, width]. ``fastgen.fused.unet.FusedUNet`` is one.
    """

    width: int

    def condition(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor: ...

    def denoise(self, x: Tensor, emb: Tensor, t: Tensor) -> Tensor: ...


class Conditions:
    """`values` [capacity, width]: the network's `condition` for every row of the tables in use, by label.

    A stretch stays until its room is needed and nobody uses it. `values` is another tensor once it has grown, up to
    `limit` bytes.
    """

    def __init__(
        self, network: Conditioned, device: torch.device, dtype: torch.dtype, *, limit: int | None = None
    ) -> None:
        self._network, self._device, self._dtype = network, device, dtype
        self._most = (LIMIT if limit is None else limit) // (max(1, network.width) * dtype.itemsize)
        self.values = torch.zeros(min(FIRST_ENTRIES, self._most), network.width, device=device, dtype=dtype)
        self._stretches = Stretches(0)
        self.overflowed = False  # whether a table has not found room

    def acquire(self, table: Table, labels: Sequence[int | None]) -> tuple[int, int] | None:
        """Where the entries of the first and the last label begin, one for each row of `table`, held until `release`.

        None for no room.
        """
        starts: list[int] = []
        try:
            for label in labels:
                start = self._acquire(table, label)
                if start is None:
                    break
                starts.append(start)
        finally:  # no memory, either
            if len(starts) < len(labels):
                self.overflowed = True
                self.release(table, labels[: len(starts)])
        return (starts[0], starts[-1]) if len(starts) == len(labels) else None

    def release(self, table: Table, labels: Sequence[int | None]) -> None:
        """Undo one `acquire` that found room."""
        for label in labels:
            self._stretches.release((id(table), label))

    def describe(self) -> dict[str, Any]:
        """Plain data."""
        return {"from": "table", "bytes": self.values.nbytes, "limit": LIMIT, "overflowed": self.overflowed}

    def _acquire(self, table: Table, label: int | None) -> int | None:
        key = (id(table), label)
        start = self._stretches.hold(key)
        if start is not None:
            return start
        length = len(table)
        start = self._stretches.room(length, self._most)
        if start + length > self._most:
            return None
        if start + length > len(self.values):
            self._grow(start + length)
        self._fill(self.values[start : start + length], table, label)
        self._stretches.place(key, start, length, table)
        return start

    def _fill(self, entries: Tensor, table: Table, label: int | None) -> None:
        times = torch.tensor(table.time, dtype=torch.float32, device=self._device)
        for first in range(0, len(times), ROWS_AT_A_TIME):
            t = times[first : first + ROWS_AT_A_TIME]
            labels = None if label is None else torch.full(t.shape, label, dtype=torch.int64, device=t.device)
            entries[first : first + len(t)] = self._network.condition(t, labels, self._dtype)

    def _grow(self, least: int) -> None:
        values = self.values.new_zeros(
            min(max(2 * len(self.values), least), self._most), self.values.shape[1]
        )
        values[: len(self.values)] = self.values
        self.values = values
