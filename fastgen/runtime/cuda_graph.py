"""CUDA graphs: a step captured once, replayed by one launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastgen_kernels import loaded_kernels

from ..errors import CaptureError

WARM_UPS = 2  # libraries choose their algorithms in the first call, and may allocate workspaces in the second


class CudaGraphs:
    """The ``cuda`` backend of one loop: its graphs share one memory pool, and so must not run at the same time.

    They do not: they are replayed on one stream, one after the other. What a step leaves behind lies in the loop's
    own buffers, outside the pool.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise CaptureError(f"CUDA graphs need a CUDA device, this one is {device}")
        self.device = device
        self.pool: Any = None  # PyTorch's handle

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that replays `step`. CaptureError where a graph cannot hold it; memory errors as they come."""
        with torch.cuda.device(self.device):
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            try:
                # Only this thread's calls are judged: others may use the device meanwhile.
                with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                    step()
            except RuntimeError as error:
                # The capture, broken off by the step's own error, ends with another.
                cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
                raise CaptureError(
                    "the step cannot be captured in a CUDA graph: the network waits for the device (.item(), a mask, "
                    "a print), copies to it, or draws from the host's generator; graph=False runs it uncaptured. "
                    f"CUDA says: {cause}"
                ) from error
        # A graph holds addresses of machine code, not the code itself.
        kernels = loaded_kernels()

        return partial(_replay, graph, kernels)

    def forget(self) -> None:
        """All graphs are gone: the next ones start a pool of their own, and this one's memory can be given back."""
        self.pool = None


def _replay(graph: torch.cuda.CUDAGraph, kernels: list[Any]) -> None:
    del kernels  # held, not used
    graph.replay()
