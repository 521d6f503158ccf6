"""Step noise on a CPU, made for many rows at a time: one row's Philox twin costs as much as a hundred's dispatch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from fastgen_kernels import normals

ROWS_AT_A_TIME = 32
ELEMENTS_AT_A_TIME = 1 << 18  # bounds the memory and the wait before a step


class Noisy(Protocol):
    """Rows that read noise: a ``Table``, or what is ``Known`` after each of its rows.

    needs_noise: of each row, whether it reads any. noise_step: the `step` of its noise counter.
    """

    @property
    def needs_noise(self) -> list[bool]: ...

    @property
    def noise_step(self) -> np.ndarray: ...


class NoiseAhead:
    """`buffer` float32 [batch, C, H, W]: the noise that each sample's next step reads.

    Bits are those of ``normals(seed, noise step, stream)``, however many are made at once.
    """

    def __init__(self, shape: tuple[int, int, int], stream: str = "step") -> None:
        self.shape, self.stream = shape, stream
        self.buffer = torch.zeros(0, *shape, dtype=torch.float32, device="cpu")
        self._made: dict[int, dict[int, torch.Tensor]] = {}  # slot -> {row: noise}

    def reserve(self, batch: int) -> None:
        """A buffer for `batch` samples, at another address."""
        self.buffer = torch.zeros(batch, *self.shape, dtype=torch.float32, device="cpu")

    def fill(self, samples: list[tuple[int, int, Noisy, int]]) -> None:
        """Bring `buffer` up to date for samples (slot, seed, rows, row about to be run)."""
        noisy = [s for s in samples if s[2].needs_noise[s[3]]]
        if empty := [s for s in noisy if s[3] not in self._made.get(s[0], {})]:
            self._make(empty)
        for slot, _, _, row in noisy:
            self.buffer[slot] = self._made[slot].pop(row)

    def forget(self, slot: int) -> None:
        """The sample in `slot` has left."""
        self._made.pop(slot, None)

    def move(self, slots: list[int]) -> None:
        """The samples of `slots` now sit in slots 0, 1, ..."""
        self._made = {new: self._made[old] for new, old in enumerate(slots) if old in self._made}

    def _make(self, samples: list[tuple[int, int, Noisy, int]]) -> None:
        """Noise of the next rows of all `samples`, in one call."""
        elements = self.buffer[0].numel() * len(samples)
        ahead = max(1, min(ROWS_AT_A_TIME, ELEMENTS_AT_A_TIME // elements))
        pairs = []  # (slot, row, seed, step of the noise counter)
        for slot, seed, table, row in samples:
            rows = [r for r in range(row, len(table.needs_noise)) if table.needs_noise[r]][:ahead]
            pairs += [(slot, r, seed, int(table.noise_step[r])) for r in rows]
        made = normals(
            [seed for _, _, seed, _ in pairs], [step for *_, step in pairs], self.stream, self.shape
        )
        for (slot, row, _, _), noise in zip(pairs, made, strict=True):
            self._made.setdefault(slot, {})[row] = noise
