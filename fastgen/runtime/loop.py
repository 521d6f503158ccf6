"""The sampling loop as a session: requests join a running batch, step together, and leave when they are done.

Each sample of the batch has its own solver table, row, seed, label and guidance weight, all of them data on the
device; a step is one network evaluation for everybody and touches only device tensors, so that it can be
captured once per (batch bucket, guided or not) and replayed for every request to come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_kernels import normals, reverse_step_out, signed_seeds
from fastgen_kernels.reverse_step.row import INPUT_SCALE, MAX_SLOTS

from ..diffusion.table import Table
from ..errors import ConfigError
from .capture import BACKENDS, Step
from .noise_ahead import NoiseAhead
from .rows import RowPool

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Request:
    """One sample to draw. `label` None is the network's null class; `guidance_scale` 1 is no guidance.

    initial: float32 [C, H, W] standard normal noise instead of the seed's own.
    """

    table: Table
    seed: int
    label: int | None = None
    guidance_scale: float = 1.0
    initial: Tensor | None = None


@dataclass
class _Active:
    ticket: int
    request: Request
    first_row: int
    row: int = 0  # rows already done


class Loop:
    """A session over one network.

    network: F(x [B, C, H, W] in `dtype`, t float32 [B], label int64 [B] or None) -> [B, C or 2C, H, W].
    shape: (C, H, W) of a sample. labelled: whether the network takes labels; null_label: the one that stands for none.
    learned: how the network's variance channels are read, as in ``reverse_step``. max_batch: samples that step
    together; others wait. backend: a name in ``BACKENDS``. Not thread-safe: an engine's lock is.
    """

    def __init__(
        self,
        network: Network,
        shape: tuple[int, int, int],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        labelled: bool = False,
        null_label: int = 0,
        learned: int = 0,
        max_batch: int = 64,
        backend: str = "eager",
        pool_rows: int = 4096,
    ) -> None:
        if type(max_batch) is not int or max_batch < 1:
            raise ConfigError(f"max_batch: expected an int of at least 1, got {max_batch!r}")
        if backend not in BACKENDS:
            raise ConfigError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        self.network, self.shape, self.device, self.dtype = network, shape, device, dtype
        self.labelled, self.null_label = labelled, null_label
        self.learned, self.max_batch = learned, max_batch
        self.backend = backend
        self.graphs: dict[tuple[int, bool], Step] = {}

        # Noise is made for four pixels at a time, so channels-last network tensors need planes of whole fours.
        wide = (shape[1] * shape[2]) % 4 == 0
        self.memory_format = torch.channels_last if wide else torch.contiguous_format
        self._pool = RowPool(pool_rows, device)
        self._x = torch.zeros(max_batch, *shape, device=device)
        self._history = torch.zeros(MAX_SLOTS, max_batch, *shape, device=device)
        self._inputs = torch.zeros(2 * max_batch, *shape, device=device, dtype=dtype).to(
            memory_format=self.memory_format
        )
        self._cursor = torch.zeros(max_batch, dtype=torch.int32, device=device)
        self._seeds = torch.zeros(max_batch, dtype=torch.int64, device=device)
        self._labels = torch.zeros(max_batch, dtype=torch.int64, device=device)
        # On a GPU the step makes its noise itself; on a CPU it is made for many rows at a time beforehand.
        self._noise = NoiseAhead(max_batch, shape) if device.type == "cpu" else None

        self._active: list[_Active | None] = [None] * max_batch
        self._waiting: deque[tuple[int, Request]] = deque()
        self._done: list[tuple[int, Tensor]] = []
        self._next_ticket = 0
        self._running: tuple[int, bool] | None = None  # the graph whose input buffer is filled

    def add(self, request: Request) -> int:
        """Queue a sample, at any time; returns its ticket."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._waiting.append((ticket, request))
        return ticket

    @torch.no_grad()
    def step(self) -> bool:
        """One network evaluation for every sample in the batch; False when there was nothing to do."""
        self._admit()
        active = [(slot, entry) for slot, entry in enumerate(self._active) if entry is not None]
        if not active:
            return False
        key = (self._bucket(active[-1][0] + 1), any(e.request.guidance_scale != 1 for _, e in active))
        if key not in self.graphs:
            self._capture(key)
        if key != self._running:
            self._fill_inputs(key)
            self._running = key
        if self._noise is not None:
            self._noise.fill([(s, e.request.seed, e.request.table, e.row) for s, e in active])
        self.graphs[key]()
        for slot, entry in active:
            entry.row += 1
            if entry.row == len(entry.request.table):
                self._retire(slot, entry)
        return True

    def finished(self) -> list[tuple[int, Tensor]]:
        """(ticket, float32 [C, H, W]) of samples done since the last call; the tensors are the caller's own."""
        done, self._done = self._done, []
        return done

    def current(self) -> dict[int, Tensor]:
        """{ticket: float32 [C, H, W], a view} of the samples being drawn: their noisy states."""
        return {entry.ticket: self._x[slot] for slot, entry in enumerate(self._active) if entry is not None}

    def clear(self) -> None:
        """Forget every request that is not finished, for instance after an interrupt."""
        self._waiting.clear()
        for slot, entry in enumerate(self._active):
            if entry is not None:
                self._leave(slot, entry)
        self._cursor.zero_()

    def _admit(self) -> None:
        free = deque(slot for slot, entry in enumerate(self._active) if entry is None)
        joined: list[int] = []
        while self._waiting and free:
            ticket, request = self._waiting[0]
            first = self._pool.acquire(request.table, request.guidance_scale)
            if first is None:
                if any(entry is not None for entry in self._active):
                    break  # its rows fit once others have left
                self._grow(len(request.table) + 1)
                continue
            self._waiting.popleft()
            slot = free.popleft()
            self._active[slot] = _Active(ticket, request, first)
            joined.append(slot)
        if joined:
            self._start(joined)
        self._compact()

    def _start(self, slots: list[int]) -> None:
        """Initial state of the samples in `slots`: noise of their seeds, first rows, labels."""
        entries = [entry for slot in slots if (entry := self._active[slot]) is not None]
        index = torch.tensor(slots, device=self.device)
        seeds = signed_seeds([e.request.seed for e in entries]).to(self.device)
        x = normals(seeds, 0, "initial", self.shape)
        for i, entry in enumerate(entries):
            if entry.request.initial is not None:
                x[i] = entry.request.initial
        scales = torch.tensor([e.request.table.initial_scale for e in entries], device=self.device)
        self._x[index] = x * scales.float().view(-1, 1, 1, 1)
        self._seeds[index] = seeds
        self._cursor[index] = torch.tensor(
            [e.first_row for e in entries], device=self.device, dtype=torch.int32
        )
        labels = [e.request.label if e.request.label is not None else self.null_label for e in entries]
        self._labels[index] = torch.tensor(labels, device=self.device)
        self._running = None

    def _retire(self, slot: int, entry: _Active) -> None:
        self._done.append((entry.ticket, self._x[slot].clone()))
        self._leave(slot, entry)  # the step itself has put the cursor on the idle row

    def _leave(self, slot: int, entry: _Active) -> None:
        self._pool.release(entry.request.table, entry.request.guidance_scale)
        self._active[slot] = None
        if self._noise is not None:
            self._noise.forget(slot)

    def _compact(self) -> None:
        """Move samples to the front where that lets a smaller bucket serve them."""
        used = [slot for slot, entry in enumerate(self._active) if entry is not None]
        if not used or self._bucket(used[-1] + 1) == self._bucket(len(used)):
            return
        index = torch.tensor(used, device=self.device)
        count = len(used)
        for state in (self._x, self._seeds, self._cursor, self._labels):
            state[:count] = state[index].clone()
        self._history[:, :count] = self._history[:, index].clone()
        self._cursor[count:] = 0
        if self._noise is not None:
            self._noise.move(used)
        entries = [self._active[slot] for slot in used]
        self._active = [*entries, *[None] * (self.max_batch - count)]
        self._running = None

    def _grow(self, rows: int) -> None:
        """A larger pool. Only between samples: captured steps hold the old one's address."""
        self._pool = RowPool(rows, self.device)
        self.graphs.clear()

    def _bucket(self, count: int) -> int:
        """The batch of a step. A captured one serves every batch up to the next power of two, `max_batch` at most."""
        if self.backend == "eager":
            return count
        return min(1 << (count - 1).bit_length(), self.max_batch)

    def _capture(self, key: tuple[int, bool]) -> None:
        # On the idle row a step changes no sample, but for one whose network output is not finite at its time.
        x, cursor = self._x.clone(), self._cursor.clone()
        self._cursor.zero_()
        self.graphs[key] = BACKENDS[self.backend](self._body(*key))
        self._x.copy_(x)
        self._cursor.copy_(cursor)
        self._running = None

    def _body(self, batch: int, guided: bool) -> Step:
        x, history = self._x[:batch], self._history[:, :batch]
        cursor, seeds, labels = self._cursor[:batch], self._seeds[:batch], self._labels[:batch]
        inputs = self._inputs[: 2 * batch if guided else batch]
        noise = None if self._noise is None else self._noise.buffer[:batch]
        null = torch.full_like(labels, self.null_label)

        def step() -> None:
            rows = self._pool.rows.index_select(0, cursor)
            t = self._pool.times.index_select(0, cursor)
            label = labels if self.labelled else None
            if guided:
                t = torch.cat([t, t])
                label = torch.cat([labels, null]) if self.labelled else None
            output = self.network(inputs, t, label).contiguous(memory_format=self.memory_format)
            reverse_step_out(
                x, history, output, inputs, rows, cursor, seeds, learned=self.learned, noise=noise
            )

        return step

    def _fill_inputs(self, key: tuple[int, bool]) -> None:
        """Network inputs from the states: needed where the batch changed, else the step leaves the next one."""
        batch, guided = key
        scale = self._pool.rows[self._cursor[:batch].long(), INPUT_SCALE].view(-1, 1, 1, 1)
        scaled = self._x[:batch] * scale
        self._inputs[:batch] = scaled
        if guided:
            self._inputs[batch : 2 * batch] = scaled
