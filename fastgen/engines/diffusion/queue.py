"""What the loop is asked for, one sample each, and the queue of those that wait."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...diffusion.table import Table
from ...errors import ConfigError
from .adjust import RESCALE

KNOWN, DIRECTED = "known", "directed"  # what a step does after its row: see ``known_region``


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a sample: its state is held to it, as noisy as it is, before the first row and after each.

    image: float32 [C, H, W]. keep: likewise: 1 where it is known, 0 where not, between them the share of it.
    levels: float64 [R + 1, 2], (alpha, sigma) of the state before each row and at the end, see ``state_levels``.
    direction: float32 [C] of unit length, where only this combination of channels is known; None: every channel is.
    fresh: whether each row gets noise of its own, for solvers that add noise themselves; else the same noise stays, and
    the known part goes the straight way that a probability flow takes.
    """

    image: Tensor
    keep: Tensor
    levels: np.ndarray
    direction: Tensor | None = None
    fresh: bool = True

    @property
    def needs_noise(self) -> list[bool]:
        """Of each row, whether what is known is noisy after it."""
        return (self.levels[1:, 1] != 0).tolist()

    @property
    def noise_step(self) -> np.ndarray:
        """int64 [R], `step` of the noise counter after each row; 0 is the noise of the beginning."""
        count = len(self.levels) - 1
        return np.arange(1, count + 1) if self.fresh else np.zeros(count, dtype=np.int64)


@dataclass(frozen=True)
class SampleRequest:
    """One sample to draw. `label` None is the network's null class.

    guidance_scale: classifier-free guidance, one weight or one per row of the table; 1 is no guidance.
    guidance_rescale: phi of Lin et al. 2023, 0 is none. classifier_scale: of the gradient of the loop's classifier, 0
    is none.
    initial: float32 [C, H, W] standard normal noise instead of the seed's own.
    image, level: the state begins as alpha * image + sigma * noise, level = (alpha, sigma); None: as noise alone, of
    the table's initial scale. step_noise: float32 [R, C, H, W], what each row adds instead of the seed's noise.
    known: what the state is held to.

    Raises ConfigError where its rows cannot be packed: numbers beyond float32, or not a weight for each row.
    """

    table: Table
    seed: int
    label: int | None = None
    guidance_scale: float | tuple[float, ...] = 1.0
    guidance_rescale: float = 0.0
    classifier_scale: float = 0.0
    initial: Tensor | None = None
    image: Tensor | None = None
    level: tuple[float, float] | None = None
    step_noise: Tensor | None = None
    known: Known | None = None

    def __post_init__(self) -> None:
        self.table.check_float32()
        scale = self.guidance_scale
        if isinstance(scale, tuple) and len(scale) != len(self.table):
            raise ConfigError(
                f"expected a weight for each of {len(self.table)} rows, got {len(scale)}",
                argument="guidance_scale",
            )

    @property
    def rows(self) -> tuple[Table, float | tuple[float, ...], float, np.ndarray | None, bool]:
        """What its rows are packed from: requests with the same share them."""
        known = self.known
        levels, fresh = (None, True) if known is None else (known.levels, known.fresh)
        return self.table, self.guidance_scale, self.guidance_rescale, levels, fresh

    def guided(self, row: int) -> bool:
        """Whether row `row` needs the network's answer without the label, too."""
        scale = self.guidance_scale
        return (scale[row] if isinstance(scale, tuple) else scale) != 1

    def adjustments(self, row: int) -> tuple[str, ...]:
        """Which of `adjust` row `row` needs; a table's are those of all its rows."""
        found = self.table.adjusted
        if self.guidance_rescale and self.guided(row):
            found = (RESCALE, *found)
        if self.known is not None:
            found = (*found, KNOWN, *([] if self.known.direction is None else [DIRECTED]))
        return found


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

    @property
    def has_noise(self) -> bool:
        """Whether what its rows add was given as tensors."""
        return self.request.step_noise is not None


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
