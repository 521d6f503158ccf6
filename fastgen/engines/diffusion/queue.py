"""What the loop is asked for, one sample each, and the queue of those that wait."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from torch import Tensor

from ...diffusion.table import Table
from ...errors import ConfigError
from .adjust import RESCALE


@dataclass(frozen=True)
class SampleRequest:
    """One sample to draw. `label` None is the network's null class.

    guidance_scale: classifier-free guidance, one weight or one per row of the table; 1 is no guidance.
    guidance_rescale: phi of Lin et al. 2023, 0 is none. classifier_scale: of the gradient of the loop's classifier, 0
    is none.
    initial: float32 [C, H, W] standard normal noise instead of the seed's own.

    Raises ConfigError where its rows cannot be packed: numbers beyond float32, or not a weight for each row.
    """

    table: Table
    seed: int
    label: int | None = None
    guidance_scale: float | tuple[float, ...] = 1.0
    guidance_rescale: float = 0.0
    classifier_scale: float = 0.0
    initial: Tensor | None = None

    def __post_init__(self) -> None:
        self.table.check_float32()
        scale = self.guidance_scale
        if isinstance(scale, tuple) and len(scale) != len(self.table):
            raise ConfigError(
                f"expected a weight for each of {len(self.table)} rows, got {len(scale)}",
                argument="guidance_scale",
            )

    @property
    def rows(self) -> tuple[Table, float | tuple[float, ...], float]:
        """What its rows are packed from: requests with the same share them."""
        return self.table, self.guidance_scale, self.guidance_rescale

    def guided(self, row: int) -> bool:
        """Whether row `row` needs the network's answer without the label, too."""
        scale = self.guidance_scale
        return (scale[row] if isinstance(scale, tuple) else scale) != 1

    def adjustments(self, row: int) -> tuple[str, ...]:
        """Which of `adjust` row `row` needs; a table's are those of all its rows."""
        if self.guidance_rescale and self.guided(row):
            return (RESCALE, *self.table.adjusted)
        return self.table.adjusted


@dataclass(slots=True)
class Active:
    """A request that has a place in the batch. row: rows already done of `rows`. begun: whether its initial state is
    in the buffers. varies: whether rows differ in what they need of a step. entries: where its conditions begin, with
    its label and with none, see ``Conditions``; None where they are computed in each step.
    """

    ticket: int
    request: SampleRequest
    first_row: int
    rows: int
    varies: bool
    entries: tuple[int, int] | None = None
    row: int = 0
    begun: bool = False


class Waiting:
    """Requests by priority, higher first, and among equals in the order of their tickets."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, SampleRequest]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __contains__(self, ticket: int) -> bool:
        return any(entry[1] == ticket for entry in self._heap)

    def push(self, ticket: int, request: SampleRequest, priority: int) -> None:
        heapq.heappush(self._heap, (-priority, ticket, request))

    def first(self) -> tuple[int, SampleRequest]:
        """(ticket, request) of the one that is next."""
        _, ticket, request = self._heap[0]
        return ticket, request

    def pop(self) -> None:
        heapq.heappop(self._heap)

    def remove(self, ticket: int) -> bool:
        """Whether it was there."""
        kept = [entry for entry in self._heap if entry[1] != ticket]
        found = len(kept) < len(self._heap)
        if found:
            heapq.heapify(kept)
            self._heap = kept
        return found

    def clear(self) -> None:
        self._heap.clear()
