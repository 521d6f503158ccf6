"""Rows of 128 bytes for channels-last kernels: an alternative to their plans, to be timed against them on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LINE = 128  # bytes: what caches hold together, and memory moves best

wide: ContextVar[bool] = ContextVar("fastgen_kernels_wide_rows", default=False)


@contextmanager
def wide_rows(on: bool = True) -> Iterator[None]:
    """Within the block, `adain` and `group_norm` of this thread (or task) take channels-last tensors in wide rows.

    A program then reads 128 bytes of adjacent channels per pixel where its plan has fewer, and planes are cut into
    spans: one launch for their statistics, another that applies them. Results keep within the same bounds, but not
    the same bits. It holds for

    - `adain`: content and style maps that are channels-last, with 128 bytes of channels or more. A plane of one
      span (up to 512 pixels) is still one launch, in which one program reads it twice.
    - `group_norm`: channels-last batches with work for every multiprocessor. A row is whole groups (96 bytes,
      where a group has 24), or part of a larger one.

    A CUDA graph replays the launches that it was captured with.

    >>> with wide_rows():
    ...     wide.get()
    True
    """
    token = wide.set(on)
    try:
        yield
    finally:
        wide.reset(token)
