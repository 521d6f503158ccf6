"""Samples that come and go: requests join a running batch at any time and are handed out as they finish."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...config import check_flags
from ...errors import ConfigError, FastgenError
from ...images import PICTURES, Range, within
from ..finished import far_outside, finite, warn_not_finite
from .loop import Loop
from .queue import SampleRequest
from .request import Request


class Sample(NamedTuple):
    """A finished sample: its ticket, and float32 [C, H, W] on the engine's device, the caller's own.

    Values are clamped to the model's value range, [-1, 1], if it has one; one that is not finite is NaN, and warned of.

    It depends on its request alone, but for a solver with ``step_size="batch"``, which takes means over the batch.
    """

    ticket: int
    image: Tensor


class Session:
    """An engine at work for many unlike requests. Made by ``engine.session()``.

    `add` and `cancel` may be called from any thread, also while another iterates over the results; the steps are done
    by whoever iterates, one thread at a time. A request joins at the next step, where there is a place: higher
    priorities first, and among equals in the order they came. A sample that runs is never interrupted.

        with engine.session() as session:
            tickets = session.add(4, seed=0, solver=["ddim", "euler", "heun", "ddpm"])
            for ticket, image in session:
                ...
    """

    def __init__(
        self,
        loop: Callable[[], Loop],
        resolve: Callable[..., Request],
        value_range: Range | None = PICTURES,
        outward: Callable[[Tensor], Tensor] = lambda state: state,
        *,
        measure: bool = False,
    ) -> None:
        """loop: the engine's loop of the moment. resolve: ``engine.request``. value_range: of finished samples.
        outward: what a state of the loop is to the caller.

        measure: count how many of their values lie far outside of it, see `outside`.
        """
        self._current, self._loop, self._resolve = loop, loop(), resolve
        self.value_range, self._measure, self._outward = value_range, measure, outward
        self._far: list[Tensor] = []  # the share of each finished sample's values that lie far outside
        self._seeds: dict[int, int] = {}  # of the tickets that are not handed out
        self._changed = threading.Condition()  # guards everything below
        self._stepping = threading.Lock()
        # For the loop, which one thread at a time may touch: what to add (ticket, request, priority), what to cancel.
        self._incoming: deque[tuple[int, SampleRequest, int]] = deque()
        self._leaving: list[int] = []
        self._open: set[int] = set()  # tickets of samples that are not done
        self._done: deque[Sample] = deque()
        self._counts = {"finished": 0, "cancelled": 0, "steps": 0}
        self._closed = False

    def add(self, n: int | None = None, *, priority: int = 0, **arguments: Any) -> list[int]:
        """Ask for samples; returns their tickets. n, arguments: as ``engine.sample``'s. Higher priorities go first.

        Raises what ``engine.request`` raises, and FastgenError once the session is closed.
        """
        if type(priority) is not int:
            raise ConfigError(f"expected an int, higher goes first, got {priority!r}", argument="priority")
        return self.add_request(self._resolve(n, **arguments), priority)

    def add_request(self, request: Request, priority: int = 0) -> list[int]:
        """As `add`, with what ``engine.request`` returned."""
        singles = request.singles()
        with self._changed:
            if self._closed:
                raise FastgenError("this session is closed; open another with engine.session()")
            tickets = [self._loop.new_ticket() for _ in singles]
            self._open.update(tickets)
            self._seeds.update(zip(tickets, request.seeds, strict=True))
            self._incoming.extend((t, single, priority) for t, single in zip(tickets, singles, strict=True))
            self._changed.notify_all()
        return tickets

    def cancel(self, ticket: int) -> bool:
        """Give a sample up; its place is free for the next step. False where it is done already, or unknown."""
        with self._changed:
            if ticket not in self._open:
                return False
            self._open.remove(ticket)
            self._seeds.pop(ticket, None)
            waiting = len(self._incoming)
            self._incoming = deque(entry for entry in self._incoming if entry[0] != ticket)
            if len(self._incoming) == waiting:
                self._leaving.append(ticket)
            self._counts["cancelled"] += 1
            self._changed.notify_all()
        return True

    def step(self) -> bool:
        """One network evaluation for every sample in the batch; False when there was nothing to do.

        Results wait for `finished` or the iterator. Raises what a step of the engine may raise.
        """
        worked = self._step()
        if worked is None:
            raise FastgenError("this session is closed; open another with engine.session()")
        return worked

    def _step(self) -> bool | None:
        """As `step`; None where the session is closed, perhaps by another thread a moment ago."""
        if self._current() is not self._loop:
            raise FastgenError("this call was begun before a fork; begin it again in this process")
        with self._stepping:
            with self._changed:
                if self._closed:
                    return None
                leaving, self._leaving = self._leaving, []
                for ticket in leaving:
                    self._loop.cancel(ticket)
                while self._incoming:
                    ticket, single, priority = self._incoming.popleft()
                    self._loop.add(single, priority, ticket)
            try:
                worked = self._loop.step()
            except Exception:
                self._forget_lost()
                raise
            with self._changed:
                self._counts["steps"] += worked
                for ticket, image in self._loop.finished():
                    if ticket in self._open:  # else cancelled during this very step
                        self._open.remove(ticket)
                        image = self._outward(image)
                        if self._measure and self.value_range is not None:
                            self._far.append(far_outside(image, self.value_range))
                        self._done.append(Sample(ticket, within(image, self.value_range)))
                        self._counts["finished"] += 1
                self._changed.notify_all()
        return worked

    def _forget_lost(self) -> None:
        """After an error: samples that the loop has dropped because of it will never be done."""
        with self._changed:
            waiting = {ticket for ticket, _, _ in self._incoming}
            self._open = {ticket for ticket in self._open if ticket in waiting or ticket in self._loop}
            kept = self._open | {sample.ticket for sample in self._done}
            self._seeds = {ticket: seed for ticket, seed in self._seeds.items() if ticket in kept}
            self._changed.notify_all()

    def finished(self) -> list[Sample]:
        """Samples done since the last call. Waits for the device where there are such, to see that they are finite."""
        done = self.taken()
        self._look_at(done)
        return done

    def taken(self) -> list[Sample]:
        """As `finished`, without a look at the values."""
        with self._changed:
            done = list(self._done)
            self._done.clear()
        return done

    def _look_at(self, done: Sequence[Sample]) -> None:
        if done:
            with self._changed:
                seeds = [self._seeds.pop(sample.ticket) for sample in done]
            warn_not_finite(torch.cat([finite(sample.image[None]) for sample in done]), seeds, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the network runs in."""
        return self._loop.dtype

    def outside(self) -> float | None:
        """The share of values of finished samples that lay far outside of the range; None where none was measured."""
        return float(torch.stack(self._far).mean()) if self._far else None

    def results(self, *, wait: bool = False) -> Iterator[Sample]:
        """Samples as they finish; the engine works while this is iterated.

        It ends when nothing is left to do; with `wait`, when the session is closed: until then it waits for `add`.
        """
        check_flags(wait=wait)
        while True:
            with self._changed:
                while wait and not (self._done or self._open or self._closed):
                    self._changed.wait()
                done = self._done.popleft() if self._done else None
                if done is None and (self._closed or not self._open):
                    return
            if done is not None:
                self._look_at([done])
                yield done
            else:
                self._step()

    def __iter__(self) -> Iterator[Sample]:
        return self.results()

    def states(self, tickets: Sequence[int]) -> dict[int, Tensor]:
        """{ticket: float32 [C, H, W], a view} of those that are being drawn: their noisy states."""
        running = self._loop.current()
        with self._changed:
            return {t: self._outward(running[t]) for t in tickets if t in self._open and t in running}

    def stats(self) -> dict[str, int]:
        """How many samples wait, run, are finished and were cancelled; steps done. Plain data."""
        with self._changed:
            running = sum(ticket in self._open for ticket in self._loop.current())
            return {"waiting": len(self._open) - running, "running": running, **self._counts}

    def close(self) -> None:
        """Give up what is not done. Results that are not fetched yet can still be."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._incoming.clear()
            self._open.clear()
            self._changed.notify_all()
        if (
            self._current() is self._loop
        ):  # else the loop, and perhaps the lock's holder, are in the process that was forked
            with self._stepping:  # after the step that another thread is in
                self._loop.clear()
                self._loop.finished()
