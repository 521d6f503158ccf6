"""CUDA graphs: a step captured once, replayed by one launch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastgen_kernels import loaded_kernels

from ..errors import CaptureError
from .device import out_of_memory

WARM_UPS = 2  # libraries choose their algorithms in the first call, and may allocate workspaces in the second
_CAPTURING = threading.Lock()  # PyTorch can do one capture at a time in a process


class CudaGraphs:
    """The ``cuda`` backend of one loop: its graphs share one memory pool, and so must not run at the same time.

    The loop sees to that. What a step leaves behind lies in the loop's own buffers, outside the pool.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise CaptureError(f"CUDA graphs need a CUDA device, this one is {device}")
        self.device = device
        self.pool: Any = None  # PyTorch's handle
        self._failed: list[torch.cuda.CUDAGraph] = []

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that replays `step`. CaptureError where a graph cannot hold it; memory errors as they come."""
        with _CAPTURING, torch.cuda.device(self.device):
            # A stream of our own, entered here: PyTorch's default one belongs to one device, and a capture that fails
            # would stay on it.
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    return self._captured(step, side)
            finally:
                current.wait_stream(side)

    def _captured(self, step: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
        drawn = torch.cuda.get_rng_state(self.device)
        for _ in range(WARM_UPS):
            step()
        if not torch.equal(drawn, torch.cuda.get_rng_state(self.device)):
            raise CaptureError(
                "the network draws from PyTorch's generator: its pictures would not depend on their seeds alone; "
                "graph=False runs it uncaptured"
            )
        graph = torch.cuda.CUDAGraph()
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        try:
            # Only this thread's calls are judged: others may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            # PyTorch's allocator goes on sending memory to the pool of a capture that failed, and holds its graph.
            self.pool = None
            self._failed.append(graph)
            # The capture, broken off by the step's own error, ends with another.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            if out_of_memory(cause):
                raise cause from None
            raise CaptureError(
                "the step cannot be captured in a CUDA graph: the network waits for the device (.item(), a mask, a "
                f"print) or copies to it; graph=False runs it uncaptured. CUDA says: {cause}"
            ) from error
        # A graph holds addresses: of machine code, and of the tensors that `step` alone may own.
        return partial(_replay, graph, step, loaded_kernels())

    def forget(self) -> None:
        """All graphs are gone: the next ones start a pool of their own, and this one's memory can be given back."""
        self.pool = None


def _replay(graph: torch.cuda.CUDAGraph, *held: Any) -> None:
    graph.replay()
