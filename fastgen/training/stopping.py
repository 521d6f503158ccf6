"""Ctrl-C and SIGTERM while a run is trained: the step is ended first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import Terminated

STOPS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextmanager
def stop_between_steps(
    patient: bool = False,
) -> Iterator[Callable[[], type[KeyboardInterrupt] | None]]:
    """The first Ctrl-C or SIGTERM is only noted, so that no step is left half done; the second interrupts at once.

    patient: the second and later ones are noted like the first. A Ctrl-C in a terminal may reach the processes of
    torchrun twice, from the terminal and from torchrun, which kills them after 30 seconds itself.

    Yields a function that says what was noted: the exception that stands for it, or None.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only the main thread gets signals
        before = {number: signal.getsignal(number) for number in STOPS}
    # A job in the background, whose shell has it ignore Ctrl-C, goes on; so does a handler from outside Python (None).
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    noted: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if not patient:
            restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: STOPS[noted[0]] if noted else None
    finally:
        restore()
