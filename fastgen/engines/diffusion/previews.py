"""One call's samples step by step: how far it is, and what there is to see."""

from __future__ import annotations

import heapq
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .request import Request
from .session import Session


@dataclass(frozen=True)
class Preview:
    """A moment of a run: `step` of `total` network evaluations are done.

    images: float32 [n, C, H, W] in [-1, 1], the noisy states; samples that have not begun are 0 (grey).
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
        self.tickets = session.add_request(request)
        self.evaluations = request.evaluations()
        self.done: dict[int, Tensor] = {}

    def steps(self, places: int) -> Generator[tuple[int, int]]:
        """Step until all are done, yielding (evaluations done, evaluations in all). places: samples at a time."""
        total, step = steps_of(self.evaluations, places), 0
        while len(self.done) < len(self.tickets):
            self.session.step()
            self.done.update(self.session.finished())
            step += 1
            yield step, max(step, total)  # more than planned where memory has run out

    def images(self) -> Tensor:
        """float32 [n, C, H, W] in [-1, 1], the caller's own: results, and states of what is not done; grey before."""
        running = self.session.states(self.tickets)
        images = torch.zeros(*self.shape, device=self.device)
        for i, ticket in enumerate(self.tickets):
            state = self.done.get(ticket, running.get(ticket))
            if state is not None:
                images[i] = state
        return images.clamp_(-1, 1)


def steps_of(evaluations: Sequence[int], places: int) -> int:
    """Steps that samples of so many evaluations take, `places` at a time, each place passed on when it is free."""
    if len(set(evaluations)) == 1:
        return -(-len(evaluations) // places) * evaluations[0]
    free = [0] * min(places, len(evaluations))
    for count in evaluations:
        heapq.heapreplace(free, free[0] + count)
    return max(free)
