"""What every engine has: a lock, words for pickles and forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn
from weakref import WeakSet

import torch

from ..errors import ArgumentError, ConfigError, FastgenError

_ENGINES: WeakSet[Engine] = WeakSet()


class Engine:
    """Calls from several threads queue; one engine works for one call at a time.

    On a CPU an engine may also be used in a process forked from the one that loaded it, on one core there (OpenMP's
    threads do not survive a fork); an engine on a GPU, and a process that is spawned, need a `load` of their own.
    Engines cannot be pickled or copied.
    """

    source: str
    device: torch.device

    def __init__(self) -> None:
        # Not an RLock: a stream may be begun in one thread and ended in another.
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread whose call the engine is busy with
        self._lost = False  # on a GPU that this forked process cannot use
        _ENGINES.add(self)

    def __reduce__(self) -> NoReturn:
        raise ArgumentError(
            f"an engine cannot be pickled or copied; load it where it is used (this one is {self.source!r})"
        )

    def _check_alive(self) -> None:
        """Raise FastgenError where a fork has cut the engine off from its device."""
        if self._lost:
            raise FastgenError(
                f"this engine was loaded on {self.device} before this process was forked, and a GPU does not survive "
                "that; load it in this process, or start processes with multiprocessing's spawn"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within the block the engine works for this call only. Raises FastgenError where that cannot be."""
        self._check_alive()
        if self._owner == threading.get_ident():
            raise FastgenError(
                "this engine is busy in this thread: first finish its stream, or leave its callback or its session, "
                "whose add() takes the same arguments"
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _restart(self) -> None:
        """Forget a call that was broken off in its midst."""

    def _forked(self) -> None:
        """In a child process: whoever held the lock is not there, and may have been in the midst of a step."""
        self._lost = self.device.type != "cpu"
        if self._lock.locked():
            self._lock, self._owner = threading.Lock(), None
            if not self._lost:
                self._restart()


def capture_backend(graph: bool | str) -> str:
    """The `backend` of ``fastgen.runtime.graphs.Graphs`` for an engine's `graph`. Raises ConfigError."""
    chosen = {True: "auto", False: "eager", "recorded": "recorded"}
    if not isinstance(graph, (bool, str)) or graph not in chosen:
        raise ConfigError(f"expected True, False or 'recorded', got {graph!r}", argument="graph")
    return chosen[graph]


def _after_fork() -> None:
    """Make the engines of a forked process usable."""
    engines = list(_ENGINES)
    if engines:
        torch.set_num_threads(1)  # GNU OpenMP would wait forever for threads that did not come along
    for engine in engines:
        engine._forked()


os.register_at_fork(after_in_child=_after_fork)
