"""The tensors that a loop's steps read and write, one entry per slot; captured steps hold their addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen_kernels import normals, signed_seeds
from fastgen_kernels.reverse_step import row

from .queue import Active


class Buffers:
    """States of a batch, for up to `capacity` samples of `shape` (C, H, W).

    x: float32 [capacity, C, H, W], the states. history: float32 [row.MAX_SLOTS, capacity, C, H, W]. inputs:
    [2 * capacity, C, H, W], the network's, in its type and memory format; the second half is for guidance. cursor:
    int32 [capacity], the next row of each sample in the pool. seeds, labels: int64 [capacity]. scales: float32
    [capacity], of the classifier's gradient. entries: int64 [capacity, 2], what to add to the cursor for the place of a
    sample's conditions, with its label and with none.
    """

    x: Tensor
    history: Tensor
    inputs: Tensor
    cursor: Tensor
    seeds: Tensor
    labels: Tensor
    scales: Tensor
    entries: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        self.shape, self.device, self.dtype, self.memory_format = shape, device, dtype, memory_format
        self.capacity = 0
        self.reserve(0)

    @property
    def _of_samples(self) -> tuple[Tensor, ...]:
        """All with the sample as their first axis, but for the inputs, which a step can rebuild."""
        return self.x, self.seeds, self.cursor, self.labels, self.scales, self.entries

    def reserve(self, capacity: int) -> None:
        """Room for `capacity` samples at other addresses, with what the old tensors hold."""
        old, shape, device = self.capacity, self.shape, self.device
        # Whatever PyTorch's default type is.
        x = torch.zeros(capacity, *shape, device=device, dtype=torch.float32)
        history = torch.zeros(row.MAX_SLOTS, capacity, *shape, device=device, dtype=torch.float32)
        inputs = torch.zeros(2 * capacity, *shape, device=device, dtype=self.dtype)
        inputs = inputs.to(memory_format=self.memory_format)
        cursor = torch.zeros(capacity, dtype=torch.int32, device=device)
        seeds, labels = (torch.zeros(capacity, dtype=torch.int64, device=device) for _ in range(2))
        scales = torch.zeros(capacity, device=device, dtype=torch.float32)
        entries = torch.zeros(capacity, 2, dtype=torch.int64, device=device)
        if old:
            history[:, :old] = self.history
            for new, kept in zip((x, seeds, cursor, labels, scales, entries), self._of_samples, strict=True):
                new[:old] = kept
        self.x, self.history, self.inputs = x, history, inputs
        self.cursor, self.seeds, self.labels, self.scales = cursor, seeds, labels, scales
        self.entries = entries
        self.capacity = capacity

    def start(self, slots: Sequence[int], entries: Sequence[Active], null_label: int) -> None:
        """Initial state of the samples in `slots`: noise of their seeds, first rows, labels."""
        index = torch.tensor(slots, device=self.device)
        seeds = signed_seeds([e.request.seed for e in entries]).to(self.device)
        x = normals(seeds, 0, "initial", self.shape)
        for i, entry in enumerate(entries):
            if entry.request.initial is not None:
                x[i] = entry.request.initial
        scales = torch.tensor(
            [e.request.table.initial_scale for e in entries], device=self.device, dtype=torch.float32
        )
        self.x[index] = x * scales.view(-1, 1, 1, 1)
        self.seeds[index] = seeds
        first = [e.first_row for e in entries]
        self.cursor[index] = torch.tensor(first, device=self.device, dtype=torch.int32)
        places = [[start - e.first_row for start in e.entries or (0, 0)] for e in entries]
        self.entries[index] = torch.tensor(places, device=self.device)
        labels = [null_label if e.request.label is None else e.request.label for e in entries]
        self.labels[index] = torch.tensor(labels, device=self.device)
        classified = [e.request.classifier_scale for e in entries]
        self.scales[index] = torch.tensor(classified, device=self.device, dtype=torch.float32)

    def move(self, slots: Sequence[int]) -> None:
        """The samples of `slots` to slots 0, 1, ...; the slots after them point at the idle row."""
        count, index = len(slots), torch.tensor(slots, device=self.device)
        # All copies before any is put back: memory that runs out between would leave a mixture.
        moved, history = [state[index] for state in self._of_samples], self.history[:, index]
        for state, values in zip(self._of_samples, moved, strict=True):
            state[:count] = values
        self.history[:, :count] = history
        self.cursor[count:] = 0

    def fill_inputs(self, batch: int, guided: bool, rows: Tensor) -> None:
        """Network inputs from the states: needed where the batch changed, else a step leaves the next one."""
        scale = rows[self.cursor[:batch].long(), row.INPUT_SCALE].view(-1, 1, 1, 1)
        scaled = self.x[:batch] * scale
        self.inputs[:batch] = scaled
        if guided:
            self.inputs[batch : 2 * batch] = scaled
