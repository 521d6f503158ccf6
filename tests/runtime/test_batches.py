"""Functions called in turns, captured by bucket, and what happens where memory runs out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.errors import ConfigError, OutOfMemoryError
from fastgen.runtime.batches import Batches
from tests.refusals import names, refused

CPU = torch.device("cpu")


class Counted:
    """x, y -> (x + y, 2 x [B, 1]); remembers the batches it was called with, and refuses those above `room`."""

    def __init__(self, room: int = 1000) -> None:
        self.batches: list[int] = []
        self.room = room

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("DefaultCPUAllocator: not enough memory")
        self.batches.append(len(x))
        return x + y, 2 * x[:, :1]


def arguments(count: int) -> tuple[Tensor, Tensor]:
    return torch.arange(3.0 * count).view(count, 3), torch.ones(count, 3)


def check(results: tuple[Tensor, ...], count: int) -> None:
    x, y = arguments(count)
    assert torch.equal(results[0], x + y)
    assert torch.equal(results[1], 2 * x[:, :1])


@pytest.mark.parametrize("backend", ["eager", "recorded"])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_turns(backend: str, count: int) -> None:
    batches = Batches(CPU, max_batch=4, backend=backend)
    function = Counted()
    check(batches("add", function, *arguments(count)), count)
    if backend == "eager":
        assert function.batches == [4] * (count // 4) + [count % 4] * (count % 4 > 0)


def test_a_captured_call_serves_its_bucket_and_gives_away_what_it_returns() -> None:
    batches = Batches(CPU, max_batch=8, backend="recorded")
    function = Counted()
    first = batches("add", function, *arguments(8))
    called = len(function.batches)
    for count in (8, 7, 5):
        check(batches("add", function, *arguments(count)), count)
    assert len(function.batches) == called
    check(first, 8)
    check(batches("add", function, *arguments(2)), 2)
    assert [(c["name"], c["batch"]) for c in batches.graphs.describe()] == [("add", 2), ("add", 8)]


def test_no_more_samples_are_captured_than_may_be_called() -> None:
    batches = Batches(CPU, max_batch=3, backend="recorded")
    function = Counted()
    check(batches("add", function, *arguments(3)), 3)
    assert set(function.batches) == {3}


def test_inputs_of_another_type_or_shape_are_captured_anew() -> None:
    batches = Batches(CPU, backend="recorded")
    x = torch.tensor([[1 / 3, 2.0]], dtype=torch.float64)
    for given in (x.half(), x, torch.cat([x, x], dim=1)):
        (got,) = batches("double", lambda x: (2 * x,), given)
        assert got.dtype == given.dtype
        assert torch.equal(got, 2 * given)
    assert [c["inputs"] for c in batches.graphs.describe()] == ["float16 [2]", "float64 [2]", "float64 [4]"]


def test_a_larger_bucket_is_captured_first() -> None:
    batches = Batches(CPU, backend="recorded")
    for name, count in (("a", 2), ("b", 1), ("a", 4), ("b", 1)):
        check(batches(name, Counted(), *arguments(count)), count)
    assert [(c["name"], c["batch"]) for c in batches.graphs.describe()] == [("a", 4), ("b", 1)]


def test_the_oldest_capture_and_its_buffers_leave() -> None:
    batches = Batches(CPU, backend="recorded")
    for k in range(40):
        check(batches(f"f{k}", Counted(), *arguments(2)), 2)
    assert len(batches.graphs.describe()) == len(batches._buffers) == batches.graphs.limit


@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_where_memory_runs_out_half_as_many_go_on(backend: str) -> None:
    batches = Batches(CPU, max_batch=16, backend=backend)
    with pytest.warns(UserWarning, match="max_batch=") as warned:
        check(batches("add", Counted(room=3), *arguments(11)), 11)
    for warning, tried, chosen in zip(warned, (11, 5), (5, 2), strict=True):
        assert names(str(warning.message), "cpu", tried, f"max_batch={chosen}")
    assert batches.micro_batch == 2
    check(batches("add", Counted(room=3), *arguments(3)), 3)


def test_not_even_one() -> None:
    batches = Batches(CPU)
    with refused(OutOfMemoryError, None, "cpu"):
        batches("add", Counted(room=0), *arguments(1))


def test_other_errors_come_as_they_are() -> None:
    def fails(x: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match=r"^no$"):
        Batches(CPU)("f", fails, torch.ones(1))


@pytest.mark.parametrize("max_batch", [0, -1, 1.5, True])
def test_max_batch(max_batch: object) -> None:
    with refused(ConfigError, "max_batch", max_batch):
        Batches(CPU, max_batch=max_batch)  # type: ignore[arg-type]
