"""The sampling loop as a session: requests join a running batch, step together, and leave when they are done.

Each sample of the batch has its own solver table, row, seed, label and guidance weight, all of them data on the
device; a step is one network evaluation for the whole batch and touches only device tensors, so that it can be
captured once per (batch bucket, guided or not, adjusted or not) and replayed for every request to come.

Where memory does not suffice for the batch, half of the samples are paused in their places and the others go on; a
paused sample goes on when one before it has left. Its noise is its own, so that its image does not change.
"""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...errors import ConfigError, OutOfMemoryError
from ...runtime.capture import plainly
from ...runtime.device import out_of_memory
from ...runtime.graphs import Graphs
from .adjust import EVERY_KIND
from .body import step_body
from .buffers import Buffers
from .classifier import Classifier
from .conditions import Conditioned, Conditions
from .noise_ahead import NoiseAhead, Noisy
from .queue import DIRECTED, KNOWN, Active, SampleRequest, Waiting
from .rows import RowPool

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Key = tuple[int, bool, tuple[str, ...]]  # of a step: its batch, whether it is guided, its adjustments
POOL_ROWS = 1 << 16  # 8 MB of rows: a pool that grows forgets captured steps


class Loop:
    """A session over one network.

    network: F(x [B, C, H, W] in `dtype`, t float32 [B], label int64 [B] or None) -> [B, C or 2C, H, W]. Of one that is
    ``Conditioned`` what depends on time and label alone is computed once for all steps, while there is room.
    shape: (C, H, W) of a sample. labelled: whether the network takes labels; null_label: the one that stands for none.
    learned: how the network's variance channels are read, as in ``reverse_step``. channels_last: the memory format of
    the network's input, where H*W is a multiple of 4. max_batch: samples that step together; others wait.
    backend: how a step is captured, see ``Graphs``. pool_rows: solver rows to begin with room for.
    Not thread-safe: an engine's lock is.

    Buffers have room for the largest batch so far; captured steps hold their addresses, so that a larger
    batch forgets them, and what is captured next shares the larger one's memory.
    """

    @plainly
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
        channels_last: bool = True,
        max_batch: int = 64,
        backend: str = "auto",
        pool_rows: int = POOL_ROWS,
    ) -> None:
        if type(max_batch) is not int or max_batch < 1:
            raise ConfigError(f"expected an int of at least 1, got {max_batch!r}", argument="max_batch")
        self.shape, self.device, self.dtype = shape, device, dtype
        self.labelled, self.null_label = labelled, null_label
        self.learned, self.max_batch = learned, max_batch
        self.micro_batch = max_batch  # less once memory has run out
        # Powers of two up to the batch, guided or not, adjusted or not: room for all, so that none is captured twice.
        limit = 4 * ((max_batch - 1).bit_length() + 1)
        self.graphs = Graphs(backend, device, limit=max(16, limit), fields=("batch", "guided", "adjusted"))
        self.classifier: Classifier | None = None  # steps with its gradient are not captured

        # Noise is made for four pixels at a time, so channels-last network tensors need planes of whole fours.
        wide = (shape[1] * shape[2]) % 4 == 0
        self.memory_format = torch.channels_last if channels_last and wide else torch.contiguous_format
        self.pool = RowPool(pool_rows, device)
        # On a GPU the step makes its noise itself; on a CPU it is made for many rows at a time beforehand.
        self.noise = NoiseAhead(shape) if device.type == "cpu" else None
        self.known_noise = NoiseAhead(shape, "inpaint") if device.type == "cpu" else None
        self._last = torch.cuda.Event() if device.type == "cuda" else None  # after the last step
        self._tried = 0  # samples in the batch that is being attempted
        self._active: list[Active | None] = []  # by slot
        self.buffers = Buffers(shape, device, dtype, self.memory_format)
        self._waiting = Waiting()
        self._done: list[tuple[int, Tensor]] = []
        self._tickets = itertools.count()
        self.use(network)
        self._running: tuple[int, bool] | None = None  # (batch, guided) that the input buffer is filled for
        self._batch_changes = True  # whether other samples may have to step next
        self._any_done = False  # whether the last row of a sample in the batch is done
        self._batch: list[tuple[int, Active]] = []  # those that step: slot, entry
        self._classified = False  # whether any of them is guided by the classifier
        self._key: Key | None = None  # what their steps need; None: to be found
        self._varies = False  # whether that changes from step to step
        self._noisy = False  # whether any of them ever adds noise
        self._given = False  # whether any of them has its noise as tensors
        self._holding = False  # whether anything is known of any of them

    def use(self, network: Network) -> None:
        """From now on, `network`; while no sample is in the batch."""
        self.network = network
        self.conditions: Conditions | None = None
        if isinstance(network, Conditioned):
            self.conditions = Conditions(network, self.device, self.dtype)
        self.tabled = False  # whether the samples that step have their entries there
        self.graphs.clear()  # captured steps hold the addresses of weights

    def new_ticket(self) -> int:
        """A number for a sample to come; it may be taken from any thread."""
        return next(self._tickets)

    def add(self, request: SampleRequest, priority: int = 0, ticket: int | None = None) -> int:
        """Queue a sample, at any time; returns its ticket. Higher priorities get a place first.

        ticket: of `new_ticket`; by default a new one.
        """
        initial = request.initial
        if initial is not None and tuple(initial.shape) != tuple(self.shape):
            raise ConfigError(
                f"expected shape {list(self.shape)}, got {list(initial.shape)}", argument="initial"
            )
        ticket = self.new_ticket() if ticket is None else ticket
        self._batch_changes = True
        self._waiting.push(ticket, request, priority)
        return ticket

    @plainly
    def cancel(self, ticket: int) -> bool:
        """Forget a request, whose place is free at the next step; False if it is done, or was never there."""
        if self._waiting.remove(ticket):
            return True
        for slot, entry in enumerate(self._active):
            if entry is not None and entry.ticket == ticket:
                self._leave(slot, entry)
                with self._in_order():
                    self.buffers.cursor[slot] = 0
                return True
        return False

    @plainly
    def step(self) -> bool:
        """One network evaluation for every sample in the batch, and hands out what is done; False when there was
        nothing to do.

        Raises OutOfMemoryError where one sample alone does not fit in memory, CaptureError where a step cannot be
        captured.
        """
        with self._in_order():
            while True:
                try:
                    return self._step()
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    message = str(error).strip().partition("\n")[0]
                self._halve(message)  # not in the handler: there the failed step's tensors are still alive

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Calls may come on different CUDA streams, and share the buffers: each waits for the one before."""
        if self._last is not None:
            torch.cuda.current_stream(self.device).wait_event(self._last)
        try:
            yield
        finally:
            if self._last is not None:
                self._last.record(torch.cuda.current_stream(self.device))

    def _step(self) -> bool:
        handed_out = self._any_done  # still, where memory ran out in the step before
        if handed_out:
            self._collect()
        if self._batch_changes:
            self._assemble()
        active = self._batch
        if not active:
            return handed_out  # the caller is to fetch them
        self._tried = len(active)
        if self._key is None or self._varies:
            self._key = self._key_of(active)
        key = self._key
        # The classifier's gradient is taken outside any graph, and noise as tensors is put in by the host.
        freely = self._classified or (self._given and self.noise is None)
        if not freely and key not in self.graphs:
            self._capture(key)
        if key[:2] != self._running:
            self.buffers.fill_inputs(*key[:2], self.pool.rows)
            self._running = key[:2]
        if self.noise is not None:
            self._make_noise(self.noise, active)
        if freely:
            given = self._given and self.noise is None
            step_body(self, *key, classified=self._classified, given=given)()
        else:
            self.graphs.replay(key)
        for _, entry in active:
            entry.row += 1
            if entry.row == entry.rows:
                self._any_done = True
        if self._any_done:
            self._collect()
        return True

    def _make_noise(self, ahead: NoiseAhead, active: list[tuple[int, Active]]) -> None:
        """On a CPU: the noise that this step reads."""
        if self._noisy:
            ahead.fill([(s, e.request.seed, e.request.table, e.row) for s, e in active if not e.has_noise])
        if self._given:
            self.put_given(ahead.buffer)
        if self._holding and self.known_noise is not None:
            held: list[tuple[int, int, Noisy, int]] = [
                (s, e.request.seed, e.request.known, e.row) for s, e in active if e.request.known is not None
            ]
            self.known_noise.fill(held)

    def put_given(self, noise: Tensor) -> None:
        """Into `noise` [batch, C, H, W] what the next step of samples adds that have their noise as tensors."""
        for slot, entry in self._batch:
            if entry.request.step_noise is not None:
                noise[slot] = entry.request.step_noise[entry.row]

    def _assemble(self) -> None:
        """Choose the samples that step from now on: those in the batch, those that were paused, those that waited."""
        self._admit()
        self._batch = [(s, entry) for s, entry in enumerate(self._active[: self.micro_batch]) if entry]
        self._classified = any(e.request.classifier_scale for _, e in self._batch)
        self._varies = any(e.varies for _, e in self._batch)
        self._noisy = any(any(e.request.table.needs_noise) for _, e in self._batch if not e.has_noise)
        self._given = any(e.has_noise for _, e in self._batch)
        self._holding = any(e.request.known is not None for _, e in self._batch)
        tabled = self.conditions is not None and all(e.entries is not None for _, e in self._batch)
        if tabled != self.tabled:
            self.tabled = tabled
            self.graphs.clear()
        self._key = None
        self._batch_changes = False

    def _key_of(self, active: list[tuple[int, Active]]) -> Key:
        guided = any(e.request.guided(e.row) for _, e in active)
        needed = {kind for _, e in active for kind in e.request.adjustments(e.row)}
        if needed and self.graphs.freezes:  # one captured step for whatever requests combine
            held = tuple(kind for kind in (KNOWN, DIRECTED) if kind in needed)
            every = EVERY_KIND if needed - {KNOWN, DIRECTED} else ()
            return self._bucket(active[-1][0] + 1), guided, (*every, *held)
        return self._bucket(active[-1][0] + 1), guided, tuple(sorted(needed))

    def __contains__(self, ticket: int) -> bool:
        """Whether the sample waits, is being drawn, or is done and not fetched."""
        return (
            ticket in self._waiting
            or any(entry is not None and entry.ticket == ticket for entry in self._active)
            or any(done == ticket for done, _ in self._done)
        )

    def finished(self) -> list[tuple[int, Tensor]]:
        """(ticket, float32 [C, H, W]) of samples done since the last call; the tensors are the caller's own."""
        done, self._done = self._done, []
        return done

    def current(self) -> dict[int, Tensor]:
        """{ticket: float32 [C, H, W], a view} of the samples being drawn: their noisy states."""
        return {
            entry.ticket: self.buffers.x[slot] for slot, entry in enumerate(self._active) if entry is not None
        }

    @plainly
    def clear(self) -> None:
        """Forget every request that is not finished, for instance after an interrupt."""
        self._waiting.clear()
        for slot, entry in enumerate(self._active):
            if entry is not None:
                self._leave(slot, entry)
        with self._in_order():
            self.buffers.cursor.zero_()

    def _halve(self, message: str) -> None:
        """Half as many samples at a time as were tried, from now on. message: of the error."""
        count = self._tried
        self.graphs.clear()
        self._running = None
        self._batch_changes = True
        if count <= 1:
            raise OutOfMemoryError(
                f"not even one sample of shape {list(self.shape)} fits in the memory of {self.device}: {message}"
            )
        self.micro_batch = max(1, count // 2)
        warnings.warn(
            f"{self.device} ran out of memory at {count} samples per step; fastgen goes on with {self.micro_batch}. "
            f"max_batch={self.micro_batch} avoids the attempt ({message})",
            stacklevel=5,
        )

    def _reserve(self, batch: int) -> None:
        """Buffers for `batch` samples, with what the old ones hold."""
        self.buffers.reserve(batch)
        for ahead in (self.noise, self.known_noise):
            if ahead is not None:
                ahead.reserve(batch)
        self._active += [None] * (batch - len(self._active))
        self.graphs.clear()
        self._running = None

    def _admit(self) -> None:
        used = sum(entry is not None for entry in self._active)
        wanted = min(used + len(self._waiting), self.micro_batch)
        self._tried = wanted
        if wanted > len(self._active):
            self._reserve(min(1 << (wanted - 1).bit_length(), self.max_batch))
        self._compact()  # paused samples first
        free = deque(slot for slot, e in enumerate(self._active[: self.micro_batch]) if e is None)
        while self._waiting and free:
            self._place(free[0])
            free.popleft()
        # Paused samples begin when they step.
        stepping = enumerate(self._active[: self.micro_batch])
        joined = [slot for slot, entry in stepping if entry is not None and not entry.begun]
        if joined:
            self._tried = len(joined)
            self._start(joined)

    def _place(self, slot: int) -> None:
        """Give the next waiting sample a place; ValueError where its rows cannot be packed: then it is dropped."""
        ticket, request = self._waiting.first()
        before = self._addresses()
        try:
            first = self.pool.acquire(*request.rows)
        except ValueError:
            self._waiting.pop()
            raise
        try:
            entries = None
            if self.conditions is not None:
                entries = self.conditions.acquire(request.table, self._labels(request))
        except BaseException:
            self.pool.release(*request.rows)
            raise
        if self._addresses() != before:
            self.graphs.clear()  # they hold those of the smaller ones
        self._waiting.pop()
        varies = isinstance(request.guidance_scale, tuple)
        self._active[slot] = Active(ticket, request, first, len(request.table), varies, entries)

    def _addresses(self) -> tuple[int, int]:
        """Of what grows: rows of solvers, and conditions."""
        return self.pool.rows.data_ptr(), 0 if self.conditions is None else self.conditions.values.data_ptr()

    def _labels(self, request: SampleRequest) -> list[int | None]:
        """With which the network is asked: the request's own and, where it is guided, none."""
        if not self.labelled:
            return [None]
        label = self.null_label if request.label is None else request.label
        guided = request.guidance_scale != 1  # a weight for each row, too
        return [label, self.null_label] if guided and label != self.null_label else [label]

    def _start(self, slots: list[int]) -> None:
        entries = [entry for slot in slots if (entry := self._active[slot]) is not None]
        if not self.buffers.holds and any(entry.request.known is not None for entry in entries):
            self.buffers.hold()
        self.buffers.start(slots, entries, self.null_label)
        self._running = None
        for entry in entries:
            entry.begun = True

    def _collect(self) -> None:
        """Hand out the samples whose last row is done, in one launch for all of them."""
        done = [(slot, e) for slot, e in enumerate(self._active) if e is not None and e.row == e.rows]
        copies: list[Tensor] = []  # each with memory of its own: a caller may keep one of many
        try:
            for slot, _ in done:
                copies.append(torch.empty_like(self.buffers.x[slot]))
        finally:  # those that there is memory for; the others when there is more
            if copies:
                torch._foreach_copy_(copies, [self.buffers.x[slot] for slot, _ in done[: len(copies)]])
            for (slot, entry), copy in zip(done, copies, strict=False):
                self._done.append((entry.ticket, copy))
                self._leave(slot, entry)  # the step itself has put the cursor on the idle row
        self._any_done = False

    def _leave(self, slot: int, entry: Active) -> None:
        self.pool.release(*entry.request.rows)
        if self.conditions is not None and entry.entries is not None:
            self.conditions.release(entry.request.table, self._labels(entry.request))
        self._active[slot] = None
        self._batch_changes = True
        for ahead in (self.noise, self.known_noise):
            if ahead is not None:
                ahead.forget(slot)

    def _compact(self) -> None:
        """Move samples to the front where that lets a smaller bucket serve them, or lets a paused one step."""
        used = [slot for slot, entry in enumerate(self._active) if entry is not None]
        count, stepping = len(used), sum(slot < self.micro_batch for slot in used)
        if stepping == min(count, self.micro_batch) and (
            not stepping or self._bucket(used[stepping - 1] + 1) == self._bucket(stepping)
        ):
            return
        self.buffers.move(used)
        for ahead in (self.noise, self.known_noise):
            if ahead is not None:
                ahead.move(used)
        entries = [self._active[slot] for slot in used]
        self._active = [*entries, *[None] * (len(self._active) - count)]
        self._running = None

    def _bucket(self, count: int) -> int:
        """The batch of a step. A captured one serves every batch up to the next power of two."""
        if not self.graphs.freezes:
            return count
        return min(1 << (count - 1).bit_length(), self.micro_batch)

    def _capture(self, key: Key) -> None:
        # On the idle row a step changes no sample, but for one whose network output is not finite at its time.
        x, cursor = self.buffers.x.clone(), self.buffers.cursor.clone()
        self.buffers.cursor.zero_()
        try:
            self.graphs.add(key, step_body(self, *key))
        finally:
            self.buffers.x.copy_(x)
            self.buffers.cursor.copy_(cursor)
            self._running = None
