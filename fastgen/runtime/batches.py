"""A function of a batch, called for any number of samples: in parts that fit in memory, captured per batch size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, OutOfMemoryError
from .capture import Step, plainly
from .device import out_of_memory
from .graphs import Graphs

Function = Callable[..., tuple[Tensor, ...]]
_Key = tuple[str, int, str]  # name, samples, types and shapes of the inputs


class Batches:
    """Calls functions of tensors [B, ...] that return tensors [B, ...], sample by sample independent.

    max_batch: samples per call; more samples take several calls.
    backend: how a call is captured, see ``Graphs``: once for each name, each power of two of samples, and the types and
    shapes of the inputs; what it read and wrote then are buffers of its own, which are filled before and copied after.
    A captured function must touch nothing but device tensors, and must be the same under one name until `clear`. Where
    memory runs out, half as many samples go on. Not thread-safe: an engine's lock is.
    """

    def __init__(self, device: torch.device, *, max_batch: int = 64, backend: str = "auto") -> None:
        if type(max_batch) is not int or max_batch < 1:
            raise ConfigError(f"expected an int of at least 1, got {max_batch!r}", argument="max_batch")
        self.device, self.max_batch = device, max_batch
        self.micro_batch = max_batch  # less once memory has run out
        self.graphs = Graphs(backend, device, fields=("name", "batch", "inputs"))
        self._buffers: dict[_Key, tuple[list[Tensor], list[Tensor]]] = {}  # inputs and outputs
        self._last = torch.cuda.Event() if device.type == "cuda" else None  # after the last call

    @plainly
    def __call__(self, name: str, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`function(*inputs)`, whose results are the caller's own.

        inputs: [n, ...] on the device, n >= 1. Raises OutOfMemoryError where not even one sample fits in memory,
        CaptureError where the function cannot be captured.
        """
        if self._last is not None:  # calls may come on different streams, and share the buffers
            torch.cuda.current_stream(self.device).wait_event(self._last)
        total, done = inputs[0].shape[0], 0
        whole: list[Tensor] = []
        try:
            while done < total:
                count = min(self.micro_batch, total - done)
                try:
                    # A view of everything would take as long as a small layer.
                    given = inputs if count == total else [value[done : done + count] for value in inputs]
                    part = self._part(name, function, given)
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    reason = str(error).strip().partition("\n")[0]
                else:
                    if count == total:
                        return part
                    if not whole:
                        whole = [
                            torch.empty(total, *p.shape[1:], dtype=p.dtype, device=p.device) for p in part
                        ]
                    for kept, values in zip(whole, part, strict=True):
                        kept[done : done + count] = values
                    done += count
                    continue
                # Not in the handler: there the failed call's tensors are still alive.
                self._halve(count, reason)
        finally:
            if self._last is not None:
                self._last.record(torch.cuda.current_stream(self.device))
        return tuple(whole)

    def clear(self) -> None:
        """Forget what was captured: functions or their weights have changed."""
        self.graphs.clear()
        self._buffers.clear()

    def _part(self, name: str, function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not self.graphs.freezes:
            return function(*inputs)
        count = len(inputs[0])
        kinds = ", ".join(f"{str(v.dtype).removeprefix('torch.')} {list(v.shape[1:])}" for v in inputs)
        key = name, min(1 << (count - 1).bit_length(), self.micro_batch), kinds
        if key not in self.graphs:
            self._capture(key, function, inputs)
        given, results = self._buffers[key]
        for buffer, values in zip(given, inputs, strict=True):
            buffer[:count] = values
        self.graphs.replay(key)
        return tuple(result[:count].clone() for result in results)

    def _capture(self, key: _Key, function: Function, inputs: Sequence[Tensor]) -> None:
        if self._buffers and key[1] > max(batch for _, batch, _ in self._buffers):
            self.clear()  # the largest first: what is captured next shares its memory
        given = [torch.zeros(key[1], *v.shape[1:], dtype=v.dtype, device=v.device) for v in inputs]
        results: list[Tensor] = []
        self.graphs.add(key, _step(function, given, results))
        self._buffers[key] = given, results
        self._buffers = {kept: held for kept, held in self._buffers.items() if kept in self.graphs}

    def _halve(self, count: int, reason: str) -> None:
        """Half as many samples at a time as were tried, from now on. reason: the error's first line."""
        self.clear()
        if count <= 1:
            raise OutOfMemoryError(f"not even one sample fits in the memory of {self.device}: {reason}")
        self.micro_batch = max(1, count // 2)
        warnings.warn(
            f"{self.device} ran out of memory at {count} samples per call; fastgen goes on with {self.micro_batch}. "
            f"max_batch={self.micro_batch} avoids the attempt ({reason})",
            stacklevel=5,
        )


def _step(function: Function, given: list[Tensor], results: list[Tensor]) -> Step:
    """`function` from buffers to buffers. `results` are made in the first call, which no backend captures."""

    def step() -> None:
        values = function(*given)
        if not results:
            results.extend(torch.empty_like(value) for value in values)
        for result, value in zip(results, values, strict=True):
            result.copy_(value)

    return step
