"""The captured steps of one loop."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from .capture import BACKENDS, Step
from .cuda_graph import CudaGraphs

Key = tuple[Any, ...]  # what a captured step is for: its batch, and whatever else makes it another step


@dataclass(frozen=True)
class Captured:
    """A step that can be replayed; seconds it took to capture, and bytes of device memory it keeps."""

    replay: Step
    seconds: float
    bytes: int


class Graphs:
    """Captured steps by key, at most `limit` of them: the least recently used one leaves for a new one.

    All share one pool of memory. backend: a name in ``BACKENDS``, or "auto": CUDA graphs on CUDA, eager elsewhere.
    fields: what the entries of a key are called.
    """

    def __init__(
        self,
        backend: str,
        device: torch.device,
        limit: int = 16,
        fields: tuple[str, ...] = ("batch", "guided"),
    ) -> None:
        known = ("auto", *BACKENDS)
        if backend not in known:
            raise ConfigError(f"expected one of {', '.join(known)}, got {backend!r}", argument="backend")
        if backend == "auto":
            backend = "cuda" if device.type == "cuda" else "eager"
        elif backend == "cuda" and device.type != "cuda":
            raise ConfigError(
                f"cuda captures steps of a CUDA device, this one is {device}", argument="backend"
            )
        elif backend == "recorded" and device.type != "cpu":
            raise ConfigError(
                f"recorded is a stand-in for the CPU, this device is {device}", argument="backend"
            )
        self.backend, self.device, self.limit, self.fields = backend, device, limit, fields
        self._capture = BACKENDS[backend](device)
        self._captured: OrderedDict[Key, Captured] = OrderedDict()

    @property
    def freezes(self) -> bool:
        """Whether a captured step keeps its batch, so that batches are rounded up to a few sizes."""
        return self.backend != "eager"

    def __contains__(self, key: Key) -> bool:
        return key in self._captured

    def __iter__(self) -> Iterator[Key]:
        """The key of every step there is, the least recently used first."""
        return iter(self._captured)

    def replay(self, key: Key) -> None:
        """Run the step. KeyError where it was not added."""
        self._captured.move_to_end(key)
        self._captured[key].replay()

    def add(self, key: Key, step: Step) -> None:
        """Capture `step`. CaptureError where it cannot be; memory errors as they come."""
        while len(self._captured) >= self.limit:
            self._captured.popitem(last=False)
        before, start = self._memory(), time.perf_counter()
        replay = self._capture(step)
        seconds = time.perf_counter() - start
        self._captured[key] = Captured(replay, seconds, max(0, self._memory() - before))

    def clear(self) -> None:
        """Forget every step and give back their memory."""
        self._captured.clear()
        if isinstance(self._capture, CudaGraphs):
            self._capture.forget()
            gc.collect()
            torch.cuda.empty_cache()

    def describe(self) -> list[dict[str, Any]]:
        """Of every captured step: its key, seconds of capturing, bytes it added to the pool."""
        if not self.freezes:
            return []
        return [
            {**dict(zip(self.fields, key, strict=True)), "seconds": step.seconds, "bytes": step.bytes}
            for key, step in sorted(self._captured.items())
        ]

    def _memory(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what is left is in use, or belongs to the pool
        return torch.cuda.memory_reserved(self.device)
