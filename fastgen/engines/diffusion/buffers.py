"""The tensors that a loop's steps read and write, one entry per slot; captured steps hold their addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen_kernels import known_region, normals, signed_seeds
from fastgen_kernels.reverse_step import row

from .queue import Active, Known


class Buffers:
    """States of a batch, for up to `capacity` samples of `shape` (C, H, W).

    x: float32 [capacity, C, H, W], the states. history: float32 [row.MAX_SLOTS, capacity, C, H, W]. inputs:
    [2 * capacity, C, H, W], the network's, in its type and memory format; the second half is for guidance. cursor:
    int32 [capacity], the next row of each sample in the pool. seeds, labels: int64 [capacity]. scales: float32
    [capacity], of the classifier's gradient. entries: int64 [capacity, 2], what to add to the cursor for the place of a
    sample's conditions, with its label and with none. known, keep: float32 [capacity, C, H, W], direction: float32
    [capacity, C], for ``known_region``; none until a sample comes of which something is known.
    """

    x: Tensor
    history: Tensor
    inputs: Tensor
    cursor: Tensor
    seeds: Tensor
    labels: Tensor
    scales: Tensor
    entries: Tensor
    known: Tensor
    keep: Tensor
    direction: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        self.shape, self.device, self.dtype, self.memory_format = shape, device, dtype, memory_format
        self.capacity = 0
        self.holds = False  # whether there is room for what is known
        self.reserve(0)

    @property
    def _of_samples(self) -> tuple[Tensor, ...]:
        """All with the sample as their first axis, but for the inputs, which a step can rebuild."""
        always = self.x, self.seeds, self.cursor, self.labels, self.scales, self.entries
        return (*always, self.known, self.keep, self.direction) if self.holds else always

    def hold(self) -> None:
        """Room for what is known of samples, at an address of its own."""
        self._held(self.capacity)
        self.holds = True

    def _held(self, capacity: int) -> None:
        made = torch.zeros(2, capacity, *self.shape, device=self.device, dtype=torch.float32)
        self.known, self.keep = made[0], made[1]
        self.direction = torch.zeros(capacity, self.shape[0], device=self.device, dtype=torch.float32)

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
        held = (self.known, self.keep, self.direction) if self.holds else ()
        self._held(capacity if self.holds else 0)
        for new, kept in zip((self.known, self.keep, self.direction), held, strict=False):
            new[:old] = kept
        if old:
            history[:, :old] = self.history
            before = self.x, self.seeds, self.cursor, self.labels, self.scales, self.entries
            for new, kept in zip((x, seeds, cursor, labels, scales, entries), before, strict=True):
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
            [
                e.request.table.initial_scale if e.request.level is None else e.request.level[1]
                for e in entries
            ],
            device=self.device,
            dtype=torch.float32,
        )
        x *= scales.view(-1, 1, 1, 1)
        for i, entry in enumerate(entries):
            if entry.request.image is not None and entry.request.level is not None:
                x[i] += entry.request.level[0] * entry.request.image.to(x)
        self.x[index] = x
        self.seeds[index] = seeds
        if self.holds:
            for i, entry in enumerate(entries):
                self._put_known(slots[i], seeds[i : i + 1], entry.request.known)
        first = [e.first_row for e in entries]
        self.cursor[index] = torch.tensor(first, device=self.device, dtype=torch.int32)
        places = [[start - e.first_row for start in e.entries or (0, 0)] for e in entries]
        self.entries[index] = torch.tensor(places, device=self.device)
        labels = [null_label if e.request.label is None else e.request.label for e in entries]
        self.labels[index] = torch.tensor(labels, device=self.device)
        classified = [e.request.classifier_scale for e in entries]
        self.scales[index] = torch.tensor(classified, device=self.device, dtype=torch.float32)

    def _put_known(self, slot: int, seed: Tensor, known: Known | None) -> None:
        """What is known of the sample in `slot`, into its buffers and its initial state."""
        if known is None:
            self.keep[slot] = 0.0  # what was there before is not its own
            self.direction[slot] = 0.0
            return
        self.known[slot], self.keep[slot] = known.image, known.keep
        self.direction[slot] = 0.0 if known.direction is None else known.direction
        level = torch.tensor([[*known.levels[0], 1.0]], device=self.device, dtype=torch.float32)
        part = slice(slot, slot + 1)
        state, _ = known_region(
            self.x[part],
            self.x[part],
            self.known[part],
            self.keep[part],
            normals(seed, 0, "inpaint", self.shape),
            level,
            direction=self.direction[part],
        )
        self.x[part] = state

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
