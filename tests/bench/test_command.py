"""The command line: suites, wrong use in words, exit codes; on a CPU without triton, too."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastgen.bench import __main__ as command
from fastgen.bench import baselines, environment, families, kernels, suites
from fastgen.bench.contest import How
from fastgen.bench.results import Results, Row
from fastgen.bench.timing import Timing
from fastgen.families import FAMILIES
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
    assert found.rows[0].baselines.keys() == {"eager"}
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
    monkeypatch.setattr(suites, "run", lambda suite, plan: iter([row(1.0)]))
    assert command.main([*call, str(old)]) == 0
    monkeypatch.setattr(suites, "run", lambda suite, plan: iter([row(slowdown)]))
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


def test_a_baseline_that_a_family_does_not_have_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    call = ["families", "--model", "random:vector_flow", "--batch", "1", "--rounds", "3", "--device", "cpu"]
    assert command.main([*call, "--against", "eager,diffusers"]) == 0
    captured = capsys.readouterr()
    assert "without diffusers in flow: it has no such baseline; there is eager, compile" in captured.err
    assert "log_prob 1" in captured.out


def unit(group: str, name: str, size: float, seconds: float, now: list[float]) -> suites.Unit:
    """A unit whose row takes `seconds` on the clock `now`."""

    def rows() -> Iterator[Row]:
        now[0] += seconds
        yield dataclasses.replace(row(1.0), name=name)

    return suites.Unit(group, name, rows, size)


@pytest.mark.parametrize("seconds", [float("inf"), 0.5])
def test_what_there_is_no_time_for_is_named(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of every group is measured whatever it costs, the next ones while there is time."""
    said: list[str] = []
    now = [0.0]
    monkeypatch.setattr(suites.time, "perf_counter", lambda: now[0])
    plan = suites.Plan(torch.device("cpu"), (), How(rounds=3, say=said.append), Results({}), seconds=seconds)
    units = [unit(name[0], name, 1.0, 1.0, now) for name in ("a1", "b1", "a2", "a3")]
    measured = [found.name for found in suites.measured([(1.0, units)], plan)]
    assert measured == (["a1", "b1", "a2", "a3"] if seconds > 1 else ["a1", "b1"])
    assert list(plan.results.left_out) == ([] if seconds > 1 else ["a: a2, a3"])
    assert len(said) == len(plan.results.left_out)


def test_groups_share_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites one after the other, in each the first of every group, then the second: of 400 seconds no group takes
    what another one needs, and what is left goes to what waited.
    """
    now = [0.0]
    monkeypatch.setattr(suites.time, "perf_counter", lambda: now[0])
    plan = suites.Plan(torch.device("cpu"), (), How(say=lambda words: None), Results({}), seconds=400.0)
    parts = []
    for share, costs in ((0.25, {"glow": 5.0, "unet": 1.0}), (1.0, {"adain": 30.0})):  # seconds per size
        units = [
            unit(group, f"{group} {size}", size, seconds * size, now)
            for group, seconds in costs.items()
            for size in (1, 4, 16)
        ]
        parts.append((share, units))
    measured = [found.name for found in suites.measured(parts, plan)]
    first = [f"{group} {size}" for size in (1, 4) for group in ("glow", "unet")]
    # After 30 of the first part's 100 seconds the 80 of "glow 16" do not fit, nor do the 480 of "adain 16" at all.
    assert measured == [*first, "unet 16", "adain 1", "adain 4", "glow 16"]
    assert now[0] == 6 + 24 + 16 + 30 + 120 + 80
    assert list(plan.results.left_out) == ["adain: adain 16"]


def test_the_large_models_are_for_gpus() -> None:
    only = set(families.models("cuda")) - set(families.models("cpu"))
    assert {"random:cifar10", "random:rrdbnet23", "random:biggan128"} <= only
    assert only == {name for family in FAMILIES.values() for name in family.large}


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["nonsense"], "suite"),
        (["kernels", "--against", "eager,magic"], "--against"),
        (["kernels", "--case", "nope"], "--case"),
        (["kernels", "--rounds", "1"], "--rounds"),
        (["kernels", "--op", "nope"], "--op"),
        (["families", "--op", "adain"], "--op"),
        (["--model", "zoo:ddpm-mnist"], "--model"),
        (["families", "--batch", "1,0"], "--batch"),
        (["families", "--batch", "1,a"], "--batch"),
        (["families", "--steps", "-1"], "--steps"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_wrong_use_is_told(arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert option in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["families", "--model", "random:none"], "model"),
        (["families", "--model", "zoo:none"], "none"),
        (["kernels", "--compare", "/nowhere.json"], "/nowhere.json"),
        (["kernels", "--device", "tpu"], "device"),
    ],
)
def test_user_errors_are_one_line(
    arguments: list[str], about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("fastgen.bench: error:"))
    assert about in line


def test_without_a_compiler_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.shutil, "which", lambda name: None)
    assert command.main([*STEP, "--case", "one", "--against", "eager,compile"]) == 0
    captured = capsys.readouterr()
    assert "without compile: no C++ compiler" in captured.err
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


def test_without_triton_and_baselines(tmp_path: Path) -> None:
    """On a CPU nothing of it is needed; baselines that are not there are named."""
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
    assert "without diffusers: diffusers is not installed" in done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["left_out"] == {"diffusers": "diffusers is not installed"}
    assert found["rows"][0]["baselines"].keys() == {"eager"}


@pytest.mark.slow
def test_the_tour(tmp_path: Path) -> None:
    """What every machine gets, however little time there is: an operation each, a family each, a fresh process."""
    path = tmp_path / "tour.json"
    done = in_a_child(["--seconds", "1", "--device", "cpu", "--json", str(path)], ["triton"])
    assert done.returncode == 0, done.stderr
    found = Results.read(path)
    assert {row.name for row in found.rows if row.suite == "kernels"} == set(suites.OPS)
    measured = {row.name for row in found.rows if row.suite == "families"}
    assert measured == set(families.first_models())
    assert [row.name for row in found.rows if row.suite == "fresh"] == list(families.first_models())[:1]
    assert all(row.seconds and row.error <= 1 for row in found.rows)
    assert "no time left" in found.left_out.values()
    assert found.environment["triton"] == "not installed" or "triton" in found.environment
