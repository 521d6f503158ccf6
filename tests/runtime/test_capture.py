"""The recorded graph has a CUDA graph's semantics: same tensors, frozen Python, no host syncs, no host randomness."""

from __future__ import annotations

import pytest
import torch

from fastgen.errors import CaptureError
from fastgen.runtime.capture import BACKENDS, recorded
from tests.refusals import refused


def test_replay_reads_and_writes_the_captured_tensors() -> None:
    x, out = torch.arange(4.0), torch.zeros(4)

    def step() -> None:
        out.copy_(torch.relu(x - 1) * 2)

    replay = recorded(step)
    x.copy_(torch.tensor([3.0, -1.0, 0.0, 5.0]))
    out.zero_()
    replay()
    assert out.tolist() == [4.0, 0.0, 0.0, 8.0]


def test_python_values_stay_as_they_were_at_capture() -> None:
    x, factor = torch.ones(2), [2.0]
    replay = recorded(lambda: x.mul_(factor[0]))
    x.fill_(1.0)
    factor[0] = 100.0
    replay()
    assert x.tolist() == [2.0, 2.0]


def test_replay_does_not_call_the_function() -> None:
    x, calls = torch.ones(1), []

    def step() -> None:
        calls.append(1)
        x.add_(1)

    replay = recorded(step)
    before = len(calls)
    replay()
    replay()
    assert len(calls) == before
    assert x.item() == 1 + before + 2


@pytest.mark.parametrize(
    ("step", "operation"),
    [
        (lambda: torch.ones(1).item(), "_local_scalar_dense"),
        (lambda: torch.ones(3).nonzero(), "nonzero"),
        (lambda: torch.ones(3)[torch.tensor([True, False, True])], "aten.index."),
        (
            lambda: torch.ones(3).masked_fill_(torch.tensor([True] * 3), 0)[torch.ones(3) > 0],
            "aten.index.",
        ),
        (lambda: torch.zeros(3).__setitem__(torch.ones(3) > 0, torch.ones(3)), "index_put_"),
        (lambda: torch.ones(2).repeat_interleave(torch.tensor([1, 2])), "repeat_interleave"),
        (lambda: torch.randn(3), "randn"),
        (lambda: torch.nn.functional.dropout(torch.ones(9), 0.5), "bernoulli_"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(step, operation: str) -> None:  # type: ignore[no-untyped-def]
    with refused(CaptureError, None, operation):
        recorded(step)


def test_attention_is_random_only_where_it_drops() -> None:
    q = torch.randn(1, 1, 4, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    out = torch.zeros_like(q)
    replay = recorded(lambda: out.copy_(attention(q, q, q)))
    q.mul_(2)
    replay()
    assert torch.equal(out, attention(q, q, q))
    with refused(CaptureError, None, "bernoulli_"):
        recorded(lambda: attention(q, q, q, dropout_p=0.5))


def test_eager_calls_the_function_itself() -> None:
    calls: list[int] = []
    BACKENDS["eager"](torch.device("cpu"))(lambda: calls.append(1))()
    assert calls == [1]
