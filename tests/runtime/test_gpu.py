"""The loop on a CUDA device: the same images, and no step in which the host waits."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastgen.engines.diffusion.loop import Loop
from fastgen.engines.diffusion.queue import SampleRequest as Request
from fastgen.errors import CaptureError
from fastgen.runtime.cuda_graph import CudaGraphs
from tests.engines import test_adjust
from tests.engines.test_adjust import REQUESTS
from tests.engines.test_loop import TABLES, assert_close, draw, loop, oracle
from tests.engines.test_unlike import joining, sixteen
from tests.refusals import refused
from tests.small import TinyNet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def session_on_gpu(shape: tuple[int, int, int] = (3, 32, 32), **changes) -> Loop:  # type: ignore[no-untyped-def]
    session = loop(shape, device=torch.device("cuda"), **changes)
    session.network.cuda()  # type: ignore[attr-defined]
    return session


@pytest.mark.parametrize("backend", ["cuda", "eager"])
@pytest.mark.parametrize("solver", TABLES)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7), (3, 32, 32)])
def test_equals_the_plain_interpreter(
    solver: str, guidance: float, shape: tuple[int, int, int], backend: str
) -> None:
    session = session_on_gpu(shape, backend=backend)
    request = Request(TABLES[solver], seed=5, label=3, guidance_scale=guidance)
    (got,) = draw(session, [request])
    assert_close(got.cpu(), oracle(request, shape), request.table)


@pytest.mark.parametrize("backend", ["cuda", "eager"])
def test_a_step_never_waits_for_the_device(backend: str) -> None:
    session = session_on_gpu(backend=backend)
    for k in range(4):
        session.add(Request(TABLES["ddpm"], seed=k, label=k, guidance_scale=2.0))
    session.step()
    session.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            session.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("solver", TABLES)
def test_captured_equals_uncaptured_bit_for_bit(solver: str) -> None:
    requests = [Request(TABLES[solver], seed=k, label=k, guidance_scale=1.0 + k) for k in range(4)]
    captured = draw(session_on_gpu(backend="cuda"), requests)
    eager = draw(session_on_gpu(backend="eager"), requests)
    assert all(torch.equal(a, b) for a, b in zip(captured, eager, strict=True))


def test_another_solver_needs_no_other_capture() -> None:
    session = session_on_gpu()
    assert session.graphs.backend == "cuda"
    draw(session, [Request(TABLES["dpm++2m"], seed=k, guidance_scale=2.0) for k in range(4)])
    facts = session.graphs.describe()
    assert facts[0]["seconds"] > 0
    draw(session, [Request(TABLES["ddim"], seed=k, guidance_scale=7.0) for k in range(4)])
    assert session.graphs.describe() == facts


def test_graphs_share_a_pool_and_outlive_one_another() -> None:
    session = session_on_gpu(max_batch=8)
    alone = draw(session, [Request(TABLES["ddpm"], seed=7, label=1)])[0]
    many = [Request(TABLES["ddpm"], seed=k, label=1) for k in range(8)]
    draw(session, many)  # larger buffers: the small graph is captured again, in the large one's pool
    assert torch.equal(draw(session, [Request(TABLES["ddpm"], seed=7, label=1)])[0], alone)
    assert torch.equal(draw(session, many)[7], draw(session_on_gpu(max_batch=8), many)[7])
    assert {batch for batch, *_ in session.graphs} == {1, 8}


@pytest.mark.parametrize("backend", ["cuda", "eager"])
@pytest.mark.parametrize("name", REQUESTS)
def test_adjusted_rows_equal_the_plain_interpreter(name: str, backend: str) -> None:
    request = REQUESTS[name]
    (got,) = draw(session_on_gpu(test_adjust.SHAPE, backend=backend), [request])
    test_adjust.assert_close(got.cpu(), test_adjust.plain(request), request.table)


def test_adjusting_rows_never_waits_for_the_device() -> None:
    session = session_on_gpu(test_adjust.SHAPE, backend="eager")
    session.classifier = lambda x, t, label: (
        -(x.float() - 0.1 * label[:, None, None, None]).square().sum((1, 2, 3))
    )
    for k, request in enumerate(REQUESTS.values()):
        session.add(replace(request, classifier_scale=0.1 * (k % 2)))
    session.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        session.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_unlike_requests_that_join_on_captured_graphs() -> None:
    """Each equals its own call to float error, and the captured steps the uncaptured ones bit for bit."""
    shape = test_adjust.SHAPE
    got = joining(session_on_gpu(shape, max_batch=16), sixteen())
    eager = joining(session_on_gpu(shape, max_batch=16, backend="eager"), sixteen())
    for image, other, request in zip(got, eager, sixteen(), strict=True):
        test_adjust.assert_close(image.cpu(), test_adjust.plain(request), request.table)
        test_adjust.assert_close(other.cpu(), test_adjust.plain(request), request.table)
        (alone,) = draw(session_on_gpu(shape), [request])
        test_adjust.assert_close(image, alone.double(), request.table)


def test_cancelling_on_another_stream() -> None:
    requests = [Request(TABLES["ddpm"], seed=k, label=k) for k in range(4)]
    session = session_on_gpu(max_batch=2)
    tickets = [session.add(request) for request in requests]
    session.step()
    with torch.cuda.stream(torch.cuda.Stream()):
        assert session.cancel(tickets[0])
        done: dict[int, Tensor] = {}
        while session.step():
            done.update(session.finished())
    torch.cuda.synchronize()
    assert set(done) == set(tickets[1:])
    for ticket, request in list(zip(tickets, requests, strict=True))[1:]:
        assert_close(done[ticket].cpu(), oracle(request, session.shape), request.table)


def test_what_a_graph_cannot_hold_is_an_error_that_says_what_to_do() -> None:
    class Waits(TinyNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return super().forward(x, t, label) * t.max().item()

    session = session_on_gpu()
    session.network = Waits(3).cuda()
    session.add(Request(TABLES["ddim"], seed=1))
    stream = torch.cuda.current_stream()
    for _ in range(2):  # with the same words twice
        with refused(CaptureError, None, "graph=False"):
            session.step()
        # The device is as it was: PyTorch's generator and allocator work.
        assert torch.cuda.current_stream() == stream
        assert torch.randn(4, device="cuda").isfinite().all()
        torch.cuda.empty_cache()
    torch.cuda.synchronize()
    session.network = TinyNet(3).cuda()
    (got,) = draw(session, [Request(TABLES["ddim"], seed=2)])  # the same backend captures what it can
    assert session.graphs.describe()
    (want,) = draw(session_on_gpu(backend="eager"), [Request(TABLES["ddim"], seed=2)])
    assert torch.equal(got, want)
    assert draw(session_on_gpu(), [Request(TABLES["ddim"], seed=1)])[0].isfinite().all()  # so does another


def test_a_failed_capture_gives_its_memory_back() -> None:
    capture = CudaGraphs(torch.device("cuda", torch.cuda.current_device()))

    def step() -> None:
        torch.zeros(1 << 26, dtype=torch.uint8, device="cuda").sum().item()

    with pytest.raises(CaptureError):
        capture(step)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        with pytest.raises(CaptureError):
            capture(step)
        gc.collect()
        torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


def test_captures_of_one_backend_share_memory() -> None:
    """Pools are used again on one stream only: the second capture of the same work takes nothing more."""
    capture = CudaGraphs(torch.device("cuda", torch.cuda.current_device()))
    x = torch.ones(1 << 24, device="cuda")

    def step() -> None:
        x.copy_(x * 2 + 1)

    replays = [capture(step)]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    replays.append(capture(step))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == before
    x.fill_(1.0)
    for replay in replays:
        replay()
    assert x.unique().tolist() == [7.0]


def test_memory_that_runs_out_halves_the_batch() -> None:
    class Hungry(TinyNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            if len(x) > 2:
                torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
            return super().forward(x, t, label)

    requests = [Request(TABLES["ddpm"], seed=k, label=k) for k in range(8)]
    want = draw(session_on_gpu(), requests)
    session = session_on_gpu()
    session.network = Hungry(3).cuda()
    with pytest.warns(UserWarning, match="max_batch="):
        got = draw(session, requests)
    assert session.micro_batch == 2
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
