"""One call's samples step by step: how far it is, and what there is to see."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ...images import within
from ..finished import finite, warn_not_finite
from .request import Request
from .session import Session


@dataclass(frozen=True)
class Preview:
    """A moment of a run: `step` of `total` network evaluations are done.

    images: float32 [n, C, H, W], the noisy states, clamped to the model's value range, [-1, 1], if it has one; samples
    that have not begun are in its middle, 0 (grey).
    """

    step: int
    total: int
    images: Tensor


class Run:
    """The samples of `request` in a session of their own. shape: of the results, [n, C, H, W]."""

    def __init__(
        self, session: Session, request: Request, shape: Sequence[int], device: torch.device
    ) -> None:
        self.session, self.shape, self.device = session, shape, device
        self.tickets, self.seeds = session.add_request(request), request.seeds
        self.flags: dict[int, Tensor] = {}  # whether a sample is finite
        self.evaluations = request.evaluations()
        self.done: dict[int, Tensor] = {}

    def steps(self, places: int) -> Generator[tuple[int, int]]:
        """Step until all are done, yielding (evaluations done, evaluations in all). places: samples at a time."""
        total, step = steps_of(self.evaluations, places), 0
        while len(self.done) < len(self.tickets):
            self.session.step()
            for ticket, image in self.session.taken():
                self.done[ticket], self.flags[ticket] = image, finite(image[None])
            step += 1
            if len(self.done) == len(self.tickets):
                warn_not_finite(
                    torch.cat([self.flags[t] for t in self.tickets]), self.seeds, self.session.dtype
                )
            yield step, max(step, total)  # more than planned where memory has run out

    def images(self) -> Tensor:
        """float32 [n, C, H, W], the caller's own: results, and states of what is not done; see ``Preview``."""
        running = self.session.states(self.tickets)
        span = self.session.value_range
        middle = 0.0 if span is None else sum(span) / 2
        images = torch.full(tuple(self.shape), middle, device=self.device, dtype=torch.float32)
        for i, ticket in enumerate(self.tickets):
            state = self.done.get(ticket, running.get(ticket))
            if state is not None:
                images[i] = state
        return within(images, span)


@contextmanager
def progress_bar(images: int, wanted: bool) -> Iterator[Callable[[int, int], object]]:
    """A function of (evaluations done, evaluations in all) that moves a bar on stderr, with images per second.

    It does nothing where no bar is wanted: not even a disabled one is made, for tqdm's lock may be held when a process
    forks.
    """
    if not wanted:
        yield lambda step, total: None
        return
    with tqdm(total=0, unit="step") as bar:

        def advance(step: int, total: int) -> None:
            bar.total = total
            bar.update()
            whole = bar.format_dict["elapsed"] * total / step
            bar.set_postfix_str(f"{images / max(whole, 1e-9):.3g} images/s", refresh=False)

        yield advance


def steps_of(evaluations: Sequence[int], places: int) -> int:
    """Steps that samples of so many evaluations take, `places` at a time, each place passed on when it is free."""
    if len(set(evaluations)) == 1:
        return -(-len(evaluations) // places) * evaluations[0]
    free = [0] * min(places, len(evaluations))
    for count in evaluations:
        heapq.heapreplace(free, free[0] + count)
    return max(free)
