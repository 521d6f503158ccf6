"""What a failed capture leaves behind: on a stand-in that keeps the rules of PyTorch's CUDA (on CUDA: test_gpu.py)."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastgen.errors import CaptureError
from fastgen.runtime import cuda_graph
from fastgen.runtime.cuda_graph import CudaGraphs
from tests.refusals import refused


class FakeGraph:
    def replay(self) -> None:
        pass


class FakeCuda:
    """The state that a capture changes in PyTorch, and its complaints where that is not put back.

    told: whether `capture_end` ends the allocation to the pool where CUDA reports an error, as later versions do.
    """

    def __init__(self, told: bool) -> None:
        self.told = told
        self.underway: list[int] = []  # pools that the allocator sends memory to
        self.used: dict[int, int] = {}  # captures and graphs that hold a pool
        self.random_captured = False  # whether the generator believes that it is being captured
        self.broken = False  # whether CUDA has broken the capture off
        self.streams: list[Any] = []
        self.capture_streams: list[Any] = []
        self.current: Any = SimpleNamespace(wait_stream=lambda other: None, name="default")
        self.pools = 0

    # torch.cuda
    def Stream(self) -> Any:
        stream = SimpleNamespace(
            wait_stream=lambda other: None, device=torch.device("cuda", 0), name=f"side {len(self.streams)}"
        )
        self.streams.append(stream)
        return stream

    def current_stream(self) -> Any:
        return self.current

    @contextmanager
    def stream(self, stream: Any) -> Any:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, device: Any) -> Any:
        yield

    def get_rng_state(self, device: Any) -> torch.Tensor:
        return torch.zeros(1)

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def CUDAGraph(self) -> FakeGraph:
        return FakeGraph()

    @contextmanager
    def graph(self, graph: Any, pool: int | None = None, stream: Any = None, **options: Any) -> Any:
        self.empty_cache()  # as PyTorch does before a capture
        pool = self.graph_pool_handle() if pool is None else pool
        if pool in self.used and self.used[pool] == 0:
            raise AssertionError("use_count > 0 INTERNAL ASSERT FAILED")
        self.used[pool] = self.used.get(pool, 0) + 1
        self.underway.append(pool)
        self.random_captured = True
        self.broken = False
        self.capture_streams.append(stream)
        try:
            yield
        finally:
            if self.broken and not self.told:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.underway.remove(pool)
            if self.broken:
                self.used[pool] -= 1
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.random_captured = False
            weakref.finalize(graph, self._cuda_releasePool, 0, pool)

    def empty_cache(self) -> None:
        if self.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    # what a step does
    def randn(self) -> None:
        if self.random_captured:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    def item(self) -> None:
        if self.underway:
            self.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    # torch._C
    def _cuda_endAllocateToPool(self, device: int, pool: int) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def _cuda_releasePool(self, device: int, pool: int) -> None:
        assert self.used[pool] > 0, "use_count INTERNAL ASSERT FAILED"
        self.used[pool] -= 1


@pytest.fixture(params=[False, True], ids=["2.11", "later"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(told=request.param)
    stand_in = SimpleNamespace(
        cuda=fake, _C=fake, equal=torch.equal, float32=torch.float32, zeros=lambda *shape, dtype, device: None
    )
    monkeypatch.setattr(cuda_graph, "torch", stand_in)
    monkeypatch.setattr(cuda_graph, "_FAILED", [])
    return fake


def test_a_capture_that_cuda_breaks_off_leaves_nothing_behind(cuda: FakeCuda) -> None:
    capture = CudaGraphs(torch.device("cuda", 0))
    for _ in range(2):
        with refused(
            CaptureError, None, "operation not permitted", "graph=False"
        ):  # the cause, not what followed
            capture(cuda.item)
        cuda.randn()
        cuda.empty_cache()
        assert all(count == 0 for count in cuda.used.values())
        assert cuda.current.name == "default"
    capture(lambda: None)()
    cuda.randn()


def test_a_capture_that_the_step_itself_breaks_off(cuda: FakeCuda) -> None:
    def step() -> None:
        if cuda.underway:
            raise ValueError("mine")

    capture = CudaGraphs(torch.device("cuda", 0))
    with pytest.raises(ValueError, match="mine"):
        capture(step)
    cuda.randn()
    cuda.empty_cache()
    capture(lambda: None)()


def test_memory_that_runs_out_within_a_capture_is_its_own_error(cuda: FakeCuda) -> None:
    def step() -> None:
        if cuda.underway:
            cuda.broken = True
            raise torch.OutOfMemoryError("CUDA out of memory")

    capture = CudaGraphs(torch.device("cuda", 0))
    with pytest.raises(torch.OutOfMemoryError):
        capture(step)
    cuda.randn()
    cuda.empty_cache()


def test_a_graph_survives_that_the_next_capture_fails(cuda: FakeCuda) -> None:
    capture = CudaGraphs(torch.device("cuda", 0))
    replay = capture(lambda: None)
    held = capture.pool
    with pytest.raises(CaptureError):
        capture(cuda.item)
    assert cuda.used[held] == 1
    capture(lambda: None)()
    replay()


def test_all_captures_of_a_backend_use_one_stream(cuda: FakeCuda) -> None:
    first, second = (CudaGraphs(torch.device("cuda", 0)) for _ in range(2))
    replays = [capture(lambda: None) for capture in (first, first, second)]
    assert len(replays) == 3  # kept: a pool lives as long as one of its graphs
    assert cuda.capture_streams == [first.stream, first.stream, second.stream]
    assert first.stream is not second.stream
    assert len(cuda.streams) == 2


def test_what_cannot_be_put_back_does_not_hide_the_first_error(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, pool: Any, stream: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda_graph, "_abandon", broken)
    with refused(CaptureError, None, "operation not permitted", "graph=False") as caught:
        CudaGraphs(torch.device("cuda", 0))(cuda.item)
    assert caught.value.__cause__ is not None
    assert "illegal memory access" in caught.value.__cause__.__notes__[0]
