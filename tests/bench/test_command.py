"""The command line: suites, wrong use in words, exit codes; on a CPU without triton, too."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from fastgen.bench import __main__ as command
from fastgen.bench import environment, families, kernels, suites
from fastgen.bench.contest import How
from fastgen.bench.results import Results, Row
from fastgen.bench.timing import Timing
from tests.refusals import names
from tests.small import checkpoint

STEP = ["kernels", "--op", "reverse_step", "--rounds", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environment.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(environment.PRODUCT, "cpu", 32)


def test_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "k.json"
    assert command.main([*STEP, "--case", "ragged", "--against", "eager", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "ragged" in out
    assert "1 cases, every result within its bound; " in out
    assert "x eager's speed over 1 cases" in out
    found = Results.read(path)
    assert found.rows[0].rivals.keys() == {"eager"}
    assert found.ceilings.keys() == {"copy", "float32"}
    assert torch.__version__.startswith(found.environment["torch"])  # a local version may follow


def test_a_planted_wrong_kernel_is_red_without_a_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = suites.OPS["reverse_step"]

    def wrong(**arguments):  # type: ignore[no-untyped-def]
        x, h, y = step.function(**arguments)
        return x * 1.001, h, y

    monkeypatch.setitem(kernels.OPS, "reverse_step", dataclasses.replace(step, function=wrong))
    assert command.main([*STEP, "--case", "one", "--against", "eager"]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("reverse_step"))
    assert line.split()[-1] == "WRONG"


def row(seconds: float) -> Row:
    eager = Timing.of([2.0, 2.01, 1.99])
    return Row("kernels", "op", "c", "float32", 0.1, Timing.of([seconds] * 3), {"eager": eager})


@pytest.mark.parametrize(("slowdown", "code"), [(1.3, 1), (1.05, 0)])
def test_a_planted_slowdown_turns_the_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slowdown: float,
    code: int,
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    call = ["kernels", "--device", "cpu", "--json"]
    monkeypatch.setattr(suites, "kernel_rows", lambda plan: iter([row(1.0)]))
    assert command.main([*call, str(old)]) == 0
    monkeypatch.setattr(suites, "kernel_rows", lambda plan: iter([row(slowdown)]))
    assert command.main([*call, str(new), "--compare", str(old)]) == code
    assert ("slower" in capsys.readouterr().out.splitlines()[-4]) == bool(code)


def test_families_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    model = checkpoint(tmp_path / "model")
    call = [
        "families",
        "--model",
        str(model),
        "--batch",
        "1,2",
        "--steps",
        "2",
        "--rounds",
        "3",
        "--device",
        "cpu",
    ]
    assert command.main([*call, "--against", "eager", "--plot", str(tmp_path / "p")]) == 0
    captured = capsys.readouterr()
    assert "sample 2, dpm++2m 2" in captured.out
    assert (tmp_path / "p" / "batch.png").stat().st_size > 10_000


def test_a_rival_that_a_family_does_not_have_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    call = ["families", "--model", "random:vector_flow", "--batch", "1", "--rounds", "3", "--device", "cpu"]
    assert command.main([*call, "--against", "eager,diffusers"]) == 0
    captured = capsys.readouterr()
    assert names(captured.err, "diffusers", "flow", "eager, compile")
    assert "log_prob 1" in captured.out


@pytest.mark.parametrize("left", [True, False])
def test_what_there_is_no_time_for_is_named(left: bool) -> None:
    """The first of every group is measured whatever it costs, the next ones while there is time."""
    said: list[str] = []
    how = How(rounds=3, say=said.append)
    plan = suites.Plan(torch.device("cpu"), (), how, Results({}), until=float("inf") if left else 0.0)
    units = [
        suites.Unit(group, name, lambda name=name: iter([dataclasses.replace(row(1.0), name=name)]))
        for group, name in (("a", "a1"), ("b", "b1"), ("a", "a2"), ("a", "a3"))
    ]
    measured = [found.name for found in suites.while_time_is_left(units, plan)]
    suites.leave_waiting(plan)
    assert measured == (["a1", "b1", "a2", "a3"] if left else ["a1", "b1"])
    assert said == ([] if left else ["without a: a2, a3: no time left"])


def test_what_a_suite_had_no_time_for_gets_what_the_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 seconds are used, where each suite alone has the time for a part of it only."""
    now = [0.0]
    monkeypatch.setattr(suites.time, "perf_counter", lambda: now[0])
    plan = suites.Plan(torch.device("cpu"), (), How(rounds=3, say=lambda words: None), Results({}))

    def costs(seconds: float, name: str) -> Iterator[Row]:
        now[0] += seconds
        yield dataclasses.replace(row(1.0), name=name)

    def run(suite: str, plan: suites.Plan) -> Iterator[Row]:
        seconds = {"families": 5.0, "kernels": 30.0}.get(suite, 1.0)
        units = [
            suites.Unit(suite, f"{suite} {size}", partial(costs, seconds * size, f"{suite} {size}"), size)
            for size in (1, 16, 64)
        ]
        yield from suites.while_time_is_left(units, plan)

    monkeypatch.setattr(suites, "run", run)
    measured = [found.name for found in suites.everything(plan, 400.0)]
    assert now[0] == 5 + 80 + 1 + 16 + 64 + 1 + 16 + 64 + 30  # of 400, where 30 * 16 and 5 * 64 do not fit
    assert "families 16" in measured
    assert [unit.name for unit in plan.waiting] == ["families 64", "kernels 16", "kernels 64"]


def test_all_suites_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: dict[str, float] = {}
    plan = suites.Plan(torch.device("cpu"), (), How(rounds=3), Results({}))
    monkeypatch.setattr(suites, "run", lambda name, plan: ends.setdefault(name, plan.until) and iter(()))
    began = time.perf_counter()
    assert list(suites.everything(plan, 600.0)) == []
    assert list(ends) == ["families", "samplers", "coldstart", "kernels"]
    assert list(ends.values()) == sorted(ends.values())
    assert ends["kernels"] == pytest.approx(began + 600, abs=5)
    assert plan.until == pytest.approx(began + 600, abs=5)


def test_the_large_models_are_for_gpus() -> None:
    assert set(families.models("cuda")) - set(families.models("cpu")) == {"random:cifar10"}


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["nonsense"], "'nonsense'"),
        (["kernels", "--against", "eager,magic"], "--against: "),
        (["kernels", "--case", "nope"], "--case: "),
        (["kernels", "--rounds", "1"], "--rounds: "),
        (["kernels", "--op", "nope"], "'nope'"),
        (["families", "--op", "adain"], "--op, --case: "),
        (["--model", "zoo:ddpm-mnist"], "--model"),
        (["families", "--batch", "1,0"], "--batch"),
        (["families", "--steps", "-1"], "--steps"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_wrong_use_is_told(arguments: list[str], mention: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert mention in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["families", "--model", "random:none"], "random:cifar10"),
        (["families", "--model", "zoo:none"], "zoo:none"),
        (["kernels", "--compare", "/nowhere.json"], "/nowhere.json"),
        (["kernels", "--device", "tpu"], "tpu"),
    ],
)
def test_user_errors_are_one_line(
    arguments: list[str], mention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("fastgen.bench: error:"))
    assert mention in line


def test_without_a_compiler_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen.bench import contest

    monkeypatch.setattr(contest.shutil, "which", lambda name: None)
    assert command.main([*STEP, "--case", "one", "--against", "eager,compile"]) == 0
    captured = capsys.readouterr()
    assert names(captured.err, "compile", "C++")
    assert "1.00x compile" not in captured.out


WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # as if it were not installed
from fastgen.bench.__main__ import main
sys.exit(main({arguments!r}))
"""


def in_a_child(arguments: list[str], blocked: list[str]) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(arguments=arguments, blocked=blocked)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_triton_and_rivals(tmp_path: Path) -> None:
    """On a CPU nothing of it is needed; rivals that are not there are named."""
    model = checkpoint(tmp_path / "model")
    call = [
        "families",
        "--model",
        str(model),
        "--batch",
        "1",
        "--steps",
        "2",
        "--rounds",
        "3",
        "--device",
        "cpu",
    ]
    done = in_a_child([*call, "--json", str(tmp_path / "f.json")], ["triton", "diffusers", "matplotlib"])
    assert done.returncode == 0, done.stderr
    assert "diffusers" in done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["left_out"] == {"diffusers": "diffusers is not installed"}
    assert found["rows"][0]["rivals"].keys() == {"eager"}


@pytest.mark.slow
def test_the_tour(tmp_path: Path) -> None:
    """What every machine gets, however little time there is: an operation each, a family each, a fresh process."""
    path = tmp_path / "tour.json"
    done = in_a_child(["--seconds", "1", "--device", "cpu", "--json", str(path)], ["triton"])
    assert done.returncode == 0, done.stderr
    found = Results.read(path)
    assert {row.name for row in found.rows if row.suite == "kernels"} == set(suites.OPS)
    measured = {row.name for row in found.rows if row.suite == "families"}
    assert measured == {next(iter(family.models.values())) for family in families.FAMILIES.values()}
    assert [row.suite for row in found.rows][-1] == "fresh"
    assert all(row.seconds and row.error <= 1 for row in found.rows)
    assert "no time left" in found.left_out.values()
    assert found.environment["triton"] == "not installed" or "triton" in found.environment
