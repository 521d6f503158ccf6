"""The kernels suite: what is wrong gets no speed; the rows say what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fastgen.bench import __main__ as command
from fastgen.bench import chains, kernels, race
from fastgen_kernels import OPS

CPU = torch.device("cpu")
STEP = OPS["reverse_step"]


def test_every_operation_has_production_cases() -> None:
    chosen = list(kernels.selected([], [], [torch.float32]))
    assert {op.name for op, _, _ in chosen} == set(OPS)
    assert all(case.production for _, case, _ in chosen)
    named = list(kernels.selected(["reverse_step"], ["one", "mnist1"], [torch.float32, torch.float64]))
    assert [(case.name, dtype) for _, case, dtype in named] == [
        ("one", torch.float32),
        ("mnist1", torch.float32),
    ]


@pytest.mark.parametrize("name", OPS)
def test_a_row(name: str) -> None:
    """The smallest case of every operation, as its engine calls it."""
    op = OPS[name]
    case = next(case for case in op.cases if not case.production)
    row = kernels.measure(op, case, torch.float32, CPU, copy=1e10, against=["eager"], rounds=3)
    assert row.error <= 1
    assert row.seconds is not None
    assert row.seconds.median > 0
    arguments = case.make(torch.Generator().manual_seed(0), CPU, torch.float32)
    moved = row.gb_per_second * 1e9 * row.seconds.median
    assert moved == pytest.approx(op.bytes_moved(**arguments))
    assert kernels.cache_bytes(CPU) == 0
    assert row.copy_share == pytest.approx(row.gb_per_second / 10)
    assert row.tflop_per_second * 1e12 * row.seconds.median == pytest.approx(op.flops(**arguments))
    assert row.ratio("eager") == row.rivals["eager"].median / row.seconds.median
    assert row.ratio("compile") is None
    json.dumps(row.to_dict(), allow_nan=False)
    assert len(kernels.line(row, ["eager"])) == len(kernels.HEAD) + 1


def test_a_wrong_kernel_gets_no_speed() -> None:
    def wrong(**arguments):  # type: ignore[no-untyped-def]
        x, h, y = STEP.function(**arguments)
        return x * 1.001, h, y

    broken = dataclasses.replace(STEP, function=wrong)
    row = kernels.measure(broken, STEP.case("one"), torch.float32, CPU, copy=1e10, rounds=3)
    assert row.error > 1
    assert row.seconds is None
    assert row.ratio("eager") is None
    assert "WRONG" in kernels.line(row, ["eager"])
    nan = dataclasses.replace(STEP, function=lambda **a: tuple(v * float("nan") for v in STEP.function(**a)))
    assert kernels.measure(nan, STEP.case("ragged"), torch.float32, CPU, copy=1e10).seconds is None


def test_the_eager_rival_is_the_fastest_formula() -> None:
    called = []
    op = dataclasses.replace(STEP, eager=lambda **arguments: called.append(1))
    row = kernels.measure(op, STEP.case("one"), torch.float32, CPU, copy=1e10, against=["eager"], rounds=3)
    assert len(called) >= 2 + 3 * row.rivals["eager"].calls


def test_a_rival_that_fails_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> object:
        raise RuntimeError("no such backend\nlong story")

    timings = race.race(lambda: None, lambda: None, broken, ["eager", "compile"], CPU, 3)
    assert timings.keys() == {"fastgen", "eager"}
    assert capsys.readouterr().err == "compile is left out: RuntimeError: no such backend\n"


def test_bandwidth_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.COPY_BYTES, "cpu", 1 << 16)
    assert kernels.copy_bandwidth(CPU, 3) > 1e6


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.COPY_BYTES, "cpu", 1 << 20)
    path = tmp_path / "k.json"
    call = ["kernels", "--op", "reverse_step", "--case", "ragged", "--rounds", "3", "--against", "eager"]
    assert command.main([*call, "--device", "cpu", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "ragged" in out
    assert out.endswith("1 cases, every result within its bound\n")
    found = json.loads(path.read_text())
    assert found["kernels"][0]["ratios"].keys() == {"eager"}
    assert found["environment"]["torch"] == torch.__version__


def test_command_exits_with_1_where_a_result_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.COPY_BYTES, "cpu", 1 << 20)
    right = kernels.measure
    monkeypatch.setattr(
        kernels, "measure", lambda *a, **k: dataclasses.replace(right(*a, **k), error=2.0, seconds=None)
    )
    call = [
        "kernels",
        "--op",
        "reverse_step",
        "--case",
        "one",
        "--rounds",
        "3",
        "--against",
        "none",
        "--device",
        "cpu",
    ]
    assert command.main(call) == 1
    assert "wrong: reverse_step one float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SUITE"),
        (["kernels", "--against", "eager,magic"], "--against: unknown magic; known: eager, compile, none"),
        (["kernels", "--case", "nope"], "--case: unknown nope"),
        (["kernels", "--rounds", "1"], "--rounds: at least 3"),
        (["kernels", "--op", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_wrong_use_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_compiler_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    call = ["kernels", "--op", "reverse_step", "--case", "one", "--rounds", "3", "--device", "cpu"]
    assert command.main(call) == 0
    captured = capsys.readouterr()
    assert "without compile: no C++ compiler" in captured.err
    assert "compile" not in captured.out.splitlines()[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chain(dtype: torch.dtype) -> None:
    how = {"copy": 1e10, "against": ["eager"], "rounds": 3, "batches": (1, 2), "size": 32}
    first, second = chains.run(CPU, dtypes=[dtype], **how)
    assert (first.case, second.case) == ("batch 1", "batch 2")
    assert 0 < first.error <= 1
    assert first.ratio("eager") is not None
    assert second.tflop_per_second * second.seconds.median == pytest.approx(
        2 * first.tflop_per_second * first.seconds.median
    )


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
    how = {"copy": 1e10, "against": [], "rounds": 3, "batches": (1,), "size": 32}
    (row,) = chains.run(CPU, dtypes=[torch.float32], **how)
    assert row.seconds is None
