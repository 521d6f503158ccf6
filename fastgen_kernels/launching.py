"""Programmatic dependent launch for kernels that know it: a switch, because it has not been measured yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

dependent: ContextVar[bool] = ContextVar("fastgen_kernels_dependent_launch", default=False)


@contextmanager
def dependent_launch(on: bool = True) -> Iterator[None]:
    """Within the block, `conv_norm` of this thread (or task) launches its kernels ahead of the end of those before.

    It takes a GPU of compute capability 9.0 or more, and changes no bits of a result. A kernel's programs are then
    placed while the kernel before still runs, and wait before they read what it wrote: that hides the launch, 1 us or
    so. What no kernel is taken to write, bias and the norm's weight and bias, is read before that wait: do not let work
    write them that was launched just before, on the same stream. A CUDA graph replays the launches that it was captured
    with.

    >>> with dependent_launch():
    ...     dependent.get()
    True
    """
    token = dependent.set(on)
    try:
        yield
    finally:
        dependent.reset(token)
