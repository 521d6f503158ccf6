"""The kernels suite: its cases come from OPS, what is wrong gets no speed, the rows say what was measured."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from fastgen.bench import chains, environment, kernels, tables
from fastgen.bench.contest import How
from fastgen_kernels import OPS

CPU = torch.device("cpu")
STEP = OPS["reverse_step"]
QUICK = How(rounds=3, say=lambda words: None)


def test_every_operation_has_production_cases() -> None:
    chosen = list(kernels.selected([], [], [torch.float32], "cuda"))
    assert {op.name for op, _, _ in chosen} == set(OPS)
    assert all(case.production for _, case, _ in chosen)
    named = list(kernels.selected(["reverse_step"], ["one", "mnist1"], [torch.float32, torch.float64], "cpu"))
    assert [(case.name, dtype) for _, case, dtype in named] == [
        ("one", torch.float32),
        ("mnist1", torch.float32),
    ]


def test_a_cpu_is_spared_the_large_cases_unless_they_are_named() -> None:
    def names(cases: list[str], device: str) -> set[str]:
        return {
            case.name for _, case, _ in kernels.selected(["reverse_step"], cases, [torch.float32], device)
        }

    assert names([], "cuda") - names([], "cpu") == {"lsun64", "lsun64_ancestral"}
    assert names(["lsun64"], "cpu") == {"lsun64"}


@pytest.mark.parametrize("name", OPS)
def test_a_row(name: str) -> None:
    """The smallest case of every operation, as its engine calls it."""
    op = OPS[name]
    case = next(case for case in op.cases if not case.production)
    row = kernels.contest(op, case, torch.float32, CPU, ["eager"]).run(QUICK)
    assert row.error <= 1
    assert row.errors["eager"] <= 1
    assert row.seconds is not None
    assert row.seconds.median > 0
    arguments = case.make(torch.Generator().manual_seed(0), CPU, torch.float32)
    assert row.rate(row.bytes) * row.seconds.median == pytest.approx(op.bytes_moved(**arguments))
    assert row.rate(row.flops) * row.seconds.median == pytest.approx(op.flops(**arguments))
    assert kernels.copy_share(row, 1e10, CPU) == pytest.approx(row.rate(row.bytes) / 1e10)
    assert row.ratio("eager").median > 0
    assert row.ratio("compile") is None
    json.dumps(row.to_dict(), allow_nan=False)
    assert f"{row.ratio('eager').median:.2f}x" in tables.line(row, ["eager"])


def broken(change) -> kernels.Op:  # type: ignore[no-untyped-def]
    def wrong(**arguments):  # type: ignore[no-untyped-def]
        x, h, y = STEP.function(**arguments)
        return change(x), h, y

    return dataclasses.replace(STEP, function=wrong)


@pytest.mark.parametrize("change", [lambda x: x * 1.001, lambda x: x * float("nan")])
def test_a_wrong_kernel_gets_no_speed(change) -> None:  # type: ignore[no-untyped-def]
    row = kernels.contest(broken(change), STEP.case("ragged"), torch.float32, CPU, ["eager"]).run(QUICK)
    assert row.wrong
    assert row.seconds is None
    assert "WRONG" in tables.line(row, ["eager"])


def test_the_eager_baseline_is_the_fastest_formula() -> None:
    called = []

    def formula(**arguments):  # type: ignore[no-untyped-def]
        called.append(1)
        return STEP.function(**arguments)

    op = dataclasses.replace(STEP, eager=formula)
    row = kernels.contest(op, STEP.case("one"), torch.float32, CPU, ["eager"]).run(QUICK)
    assert len(called) >= 2 + 3 * row.baselines["eager"].calls


def test_a_baseline_that_computes_something_else_is_left_out() -> None:
    op = dataclasses.replace(STEP, eager=lambda **a: tuple(v * 1.01 for v in STEP.function(**a)))
    row = kernels.contest(op, STEP.case("one"), torch.float32, CPU, ["eager"]).run(QUICK)
    assert not row.baselines
    assert row.errors["eager"] > 1


def test_deviation() -> None:
    nan = float("nan")
    ours = torch.tensor([1.0, nan, -1.0])
    near = torch.tensor([1.0, nan, -1.0 - 2**-21])
    off = kernels.deviation(near, ours, torch.float32, CPU)
    rounding = 2.0**-24
    assert off == pytest.approx(2**-21 / 2**0.5 / (kernels.ROUNDINGS * rounding), rel=0.01)
    assert kernels.deviation(ours, ours, torch.float32, CPU) == 0
    assert kernels.deviation(torch.tensor([nan, nan, -1.0]), ours, torch.float32, CPU) == float("inf")
    assert kernels.deviation(torch.ones(2), ours, torch.float32, CPU) == float("inf")
    assert kernels.deviation(near, ours, torch.float32, torch.device("cuda")) < off  # TF32 is allowed there


def test_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environment.COPY_BYTES, "cpu", 1 << 16)
    monkeypatch.setitem(environment.PRODUCT, "cpu", 32)
    assert environment.copy_bandwidth(CPU, 3) > 1e6
    assert environment.product_rate(CPU, torch.float32, 3) > 1e6
    assert environment.cache_bytes(CPU) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chain(dtype: torch.dtype) -> None:
    cases = chains.contests(CPU, dtypes=[dtype], against=["eager"], batches=(1, 2), size=32)
    first, second = (case.run(QUICK) for case in cases)
    assert (first.case, second.case) == ("batch 1", "batch 2")
    assert 0 < first.error <= 1
    assert first.ratio("eager") is not None
    assert second.flops == 2 * first.flops


def test_chain_has_the_receptive_field_of_70_pixels() -> None:
    net = chains.Discriminator(CPU, torch.float32)
    x = torch.zeros(1, 6, 256, 256, requires_grad=True)
    net.eager(x)[0, 0, 15, 15].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70
    with torch.no_grad():
        assert torch.allclose(net.fused(x[..., :64, :64]), net.eager(x[..., :64, :64]), atol=1e-5)


def test_a_wrong_chain_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains.Discriminator, "error", lambda self, x: 1.5)
    (case,) = chains.contests(CPU, dtypes=[torch.float32], against=[], batches=(1,), size=32)
    assert case.run(QUICK).seconds is None
