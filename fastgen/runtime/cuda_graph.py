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
# PyTorch's allocators and its list of captures keep the address of a graph whose capture failed: it must not be freed.
_FAILED: list[Any] = []


class CudaGraphs:
    """The ``cuda`` backend of one loop: its graphs share one memory pool, and so must not run at the same time.

    The loop sees to that. What a step leaves behind lies in the loop's own buffers, outside the pool. All are captured
    on one stream: memory of a pool is used again on the stream it was first used on only, and cuBLAS keeps a workspace
    of 32 MiB for each stream. Every loop asks PyTorch for a stream of its own, because graphs of two loops may run at
    the same time.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise CaptureError(f"CUDA graphs need a CUDA device, this one is {device}")
        self.device = device
        self.pool: Any = None  # PyTorch's handle
        self.stream: Any = None  # torch.cuda.Stream, made at the first capture

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that replays `step`. CaptureError where a graph cannot hold it; memory errors as they come.

        After an error the device is as it was, unless CUDA itself is broken: PyTorch's allocator and generator work,
        and so do later captures.
        """
        with _CAPTURING, torch.cuda.device(self.device):
            # A stream of our own, entered here: PyTorch's default one belongs to one device, and a capture that fails
            # would stay on it.
            if self.stream is None:
                self.stream = torch.cuda.Stream()
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):
                    return self._captured(step)
            finally:
                current.wait_stream(self.stream)

    def _captured(self, step: Callable[[], None]) -> Callable[[], None]:
        drawn = torch.cuda.get_rng_state(self.device)
        for _ in range(WARM_UPS):
            step()
        if not torch.equal(drawn, torch.cuda.get_rng_state(self.device)):
            raise CaptureError(
                "the network draws from PyTorch's generator: its images would not depend on their seeds alone; "
                "graph=False runs it uncaptured"
            )
        graph = torch.cuda.CUDAGraph()
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        pool = self.pool
        try:
            # Only this thread's calls are judged: others may use the device meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                step()
        except BaseException as error:
            # PyTorch refuses to share a pool whose last graph is gone, and this one may have been the only one.
            self.pool = None
            try:
                _abandon(graph, pool, self.stream)
            except RuntimeError as second:  # out of memory, for instance: the first error says more
                error.add_note(f"the device could not be put back as it was: {second}")
            if not isinstance(error, RuntimeError):
                raise
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


def _abandon(graph: Any, pool: Any, stream: Any) -> None:
    """Tell PyTorch that the capture of `graph` on the current stream is over, where its own end of it has failed.

    `CUDAGraph.capture_end` raises what cudaStreamEndCapture says before it has told the allocator and the generator
    (PyTorch 2.11; later versions tell some of them). The allocator would go on sending memory to `pool` and refuse to
    give any back; the generator would take every later random number for one of the capture's.
    """
    try:
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
    except RuntimeError:
        pass  # PyTorch has told everybody
    else:
        torch._C._cuda_releasePool(stream.device.index, pool)
        _FAILED.append(graph)
    # A capture that ends as it should leaves the generator outside of one.
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros((), dtype=torch.float32, device=stream.device)


def _replay(graph: torch.cuda.CUDAGraph, *held: Any) -> None:
    graph.replay()
