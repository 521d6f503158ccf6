"""Memory that runs out halves the batch and changes no image; buffers and graphs are no larger than needed."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fastgen.engines.diffusion import buffers
from fastgen.engines.diffusion.loop import Loop
from fastgen.engines.diffusion.queue import SampleRequest as Request
from fastgen.errors import ConfigError, OutOfMemoryError
from fastgen.runtime import cuda_graph, device
from fastgen.runtime.graphs import Graphs
from tests.engines.test_loop import TABLES, draw, loop
from tests.refusals import refused
from tests.small import TinyNet

CPU = torch.device("cpu")


def exhausted() -> None:
    """What PyTorch itself does where memory does not suffice."""
    torch.empty(1 << 60, dtype=torch.uint8)


class Hungry(TinyNet):
    """Fits in memory up to `most` samples at once; notes the batches that it was asked for."""

    def __init__(self, most: int, fail: Callable[[], None] = exhausted) -> None:
        super().__init__()
        self.most, self.fail = most, fail
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        if len(x) > self.most:
            self.fail()
        return super().forward(x, t, label)


def hungry(most: int, fail: Callable[[], None] = exhausted, **changes: object) -> Loop:
    session = loop(**changes)
    session.network = Hungry(most, fail)
    return session


def unlike(count: int) -> list[Request]:
    tables = list(TABLES.values())
    return [
        Request(tables[k % 3], seed=50 + k, label=k % 10, guidance_scale=2.0 + k % 2) for k in range(count)
    ]


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")  # one for every time that it halves
@pytest.mark.parametrize("backend", ["eager", "recorded"])
@pytest.mark.parametrize("most", [2, 4, 7])
def test_the_images_stay_the_same(backend: str, most: int) -> None:
    requests = unlike(11)
    want = draw(loop(), requests)
    session = hungry(most, backend=backend)
    with pytest.warns(UserWarning, match=r" 8 .*max_batch="):
        got = draw(session, requests)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert 1 <= session.micro_batch <= most
    with warnings.catch_warnings():  # the lesson is kept
        warnings.simplefilter("error")
        draw(session, requests)


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
def test_memory_that_runs_out_in_the_midst_of_a_run() -> None:
    """Samples with half their steps done sleep and wake with their history and noise."""
    requests = unlike(8)
    want = draw(loop(), requests)
    session = hungry(99)
    tickets = [session.add(request) for request in requests]
    done: dict[int, Tensor] = {}
    for _ in range(3):
        session.step()
    session.network.most = 3  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r" 8 .*max_batch=4"):
        session.step()
    while session.step():
        done.update(session.finished())
        assert set(session.current()).isdisjoint(done)
    assert all(torch.equal(done[t], w) for t, w in zip(tickets, want, strict=True))


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
def test_requests_that_join_paused_wait_behind_them() -> None:
    requests = unlike(10)
    want = draw(loop(), requests)
    session = hungry(2)
    tickets = [session.add(request) for request in requests[:6]]
    with pytest.warns(UserWarning, match=r" 6 .*max_batch=3"):
        session.step()
    tickets += [session.add(request) for request in requests[6:]]
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    assert all(torch.equal(done[t], w) for t, w in zip(tickets, want, strict=True))


@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_not_even_one_sample_fits(backend: str) -> None:
    session = hungry(0, backend=backend)
    session.add(Request(TABLES["ddim"], seed=1))
    with refused(OutOfMemoryError, None, "[1, 6, 6]", "allocate"):
        session.step()
    session.clear()
    session.network = TinyNet()
    request = Request(TABLES["ddim"], seed=2)
    assert torch.equal(draw(session, [request])[0], draw(loop(), [request])[0])


def test_other_errors_pass() -> None:
    def broken() -> None:
        raise RuntimeError("size mismatch")

    session = hungry(0, broken)
    session.add(Request(TABLES["ddim"], seed=1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        session.step()
    assert session.micro_batch == session.max_batch


def test_every_kind_of_memory_error_is_known() -> None:
    assert device.out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert device.out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        exhausted()
    assert device.out_of_memory(caught.value)
    assert device.out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert device.out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not device.out_of_memory(RuntimeError("size mismatch"))


def test_buffers_grow_with_the_batch() -> None:
    session = loop(max_batch=64)
    assert session.buffers.x.shape[0] == 0
    draw(session, unlike(3))
    assert session.buffers.x.shape[0] == 4
    assert session.buffers.history.shape[1] == 4
    draw(session, unlike(2))
    assert session.buffers.x.shape[0] == 4
    draw(session, unlike(70))
    assert session.buffers.x.shape[0] == 64


def test_growing_in_the_midst_of_a_run_keeps_it() -> None:
    requests = unlike(7)
    want = draw(loop(), requests)
    session = loop(backend="recorded")
    tickets = [session.add(requests[0])]
    session.step()
    tickets += [session.add(request) for request in requests[1:]]
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    assert all(torch.equal(done[t], w) for t, w in zip(tickets, want, strict=True))


def test_the_least_recently_used_graph_leaves() -> None:
    calls: list[int] = []
    graphs = Graphs("eager", CPU, limit=2)
    for batch in (1, 2):
        graphs.add((batch, False), lambda batch=batch: calls.append(batch))
    graphs.replay((1, False))
    graphs.add((4, True), lambda: calls.append(4))
    assert list(graphs) == [(1, False), (4, True)]
    assert (2, False) not in graphs
    graphs.replay((4, True))
    assert calls == [1, 4]
    graphs.clear()
    assert list(graphs) == []


@pytest.mark.parametrize(
    ("backend", "mentions"),
    [("cuda", ["cuda", "cpu"]), ("turbo", ["auto, eager, recorded, cuda", "turbo"])],
)
def test_a_backend_that_does_not_fit_is_refused(backend: str, mentions: list[str]) -> None:
    with refused(ConfigError, "backend", *mentions):
        Graphs(backend, CPU)


def test_auto_is_eager_on_a_cpu_and_graphs_on_a_gpu() -> None:
    assert Graphs("auto", CPU).backend == "eager"
    assert Graphs("auto", torch.device("cuda", 0)).backend == "cuda"


class Small:
    """Buffers of more than `most` samples do not fit: stands in for a device whose memory others use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most, right = most, Loop._reserve

        def reserve(session: Loop, batch: int) -> None:
            if batch > self.most:
                exhausted()
            right(session, batch)

        monkeypatch.setattr(Loop, "_reserve", reserve)


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
@pytest.mark.parametrize("most", [1, 2, 4])
def test_buffers_that_cannot_grow(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    requests = unlike(40)
    want = draw(loop(), requests)
    Small(monkeypatch, most)
    session = loop()
    assert all(torch.equal(a, b) for a, b in zip(draw(session, requests), want, strict=True))
    assert session.micro_batch == most


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
@pytest.mark.parametrize(("running", "joining", "most"), [(1, 3, 1), (3, 5, 4), (2, 2, 2)])
def test_buffers_that_cannot_grow_for_those_that_join(
    monkeypatch: pytest.MonkeyPatch, running: int, joining: int, most: int
) -> None:
    requests = unlike(running + joining)
    want = draw(loop(), requests)
    Small(monkeypatch, most)
    session = loop()
    tickets = [session.add(request) for request in requests[:running]]
    session.step()
    tickets += [session.add(request) for request in requests[running:]]
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    assert all(torch.equal(done[t], w) for t, w in zip(tickets, want, strict=True))
    assert session.micro_batch == most


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
def test_noise_that_does_not_fit_for_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = unlike(8)
    want = draw(loop(), requests)
    right = buffers.normals

    def normals(seeds: Tensor, *rest: object) -> Tensor:
        if len(seeds) > 3:
            exhausted()
        return right(seeds, *rest)

    monkeypatch.setattr(buffers, "normals", normals)
    session = loop()
    assert all(torch.equal(a, b) for a, b in zip(draw(session, requests), want, strict=True))
    assert session.micro_batch == 2


def test_the_callers_mode_does_not_matter() -> None:
    request = Request(TABLES["ddim"], seed=3, label=1)
    (want,) = draw(loop(), [request])
    session = loop()
    with torch.inference_mode():
        (first,) = draw(session, [request])
    (second,) = draw(session, [request])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (third,) = draw(session, [request])
    assert all(torch.equal(value, want) for value in (first, second, third))
    assert not draw(loop(), [request])[0].requires_grad


def test_a_captured_step_is_kept_alive() -> None:
    """A graph holds addresses; what it reads must live as long, also what only the step's closure owns."""
    held = torch.zeros(3)
    gone = weakref.ref(held)

    def step(held: Tensor = held) -> None:
        held.add_(1)

    replay = cuda_graph.partial(cuda_graph._replay, SimpleNamespace(replay=lambda: None), step, [])
    del held, step
    assert gone() is not None
    replay()
    del replay
    assert gone() is None


def test_samples_that_are_done_together_are_copied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one operation, and each into memory of its own: a caller may keep one of many."""
    copied: list[int] = []
    copy = torch._foreach_copy_

    def counted(targets: list[Tensor], sources: list[Tensor]) -> None:
        copied.append(len(targets))
        copy(targets, sources)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    session = loop()
    drawn = draw(session, [Request(TABLES["ddim"], seed=k) for k in range(5)])
    assert copied == [5]
    assert len({image.untyped_storage().data_ptr() for image in drawn}) == 5
    assert all(image.untyped_storage().nbytes() == image.numel() * 4 for image in drawn)


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
def test_samples_are_handed_out_as_far_as_memory_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that there is memory for at once, the others when there is more: none is lost."""
    requests = [Request(TABLES["ddim"], seed=k) for k in range(4)]
    want = draw(loop(), requests)
    session = loop()
    made: list[int] = []
    empty = torch.empty_like

    def scarce(tensor: Tensor) -> Tensor:
        made.append(1)
        if len(made) == 3:
            exhausted()
        return empty(tensor)

    monkeypatch.setattr(torch, "empty_like", scarce)
    got = draw(session, requests)
    assert len(made) == 5
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
