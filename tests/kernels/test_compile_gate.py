"""The compile gate is green for every operation, on both tritons in the field, and red for planted faults."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench import compile_gate

# `make test-all` installs a second triton, the oldest that is supported, and names its folder here.
OTHER = os.environ.get("FASTGEN_TRITON_MIN")


def folder(triton: str) -> Path | None:
    """Of `triton`, as `compile_gate.compiled` takes it."""
    if triton == "oldest" and not OTHER:
        pytest.skip("FASTGEN_TRITON_MIN does not name the folder of a second triton")
    return Path(OTHER) if triton == "oldest" else None


# Every other operation with the installed triton for the newest architecture, the rest with the oldest for the H100's.
SAMPLE = [
    (name, *(("installed", 100), ("oldest", 90))[number % 2])
    for number, name in enumerate(compile_gate.BUDGETS)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "triton", "architecture"), SAMPLE)
def test_within_budget(name, triton, architecture):
    """A sample of what `make gate` compiles in minutes; the next test holds its record to the sources."""
    reports = compile_gate.compiled([f"{name}:{architecture}"], folder(triton))
    assert {report["architecture"] for report in reports} == {architecture}
    assert compile_gate.judge(reports) == []


@pytest.mark.parametrize("name", compile_gate.BUDGETS)
def test_what_is_recorded_is_of_these_kernels_and_within_budget(name):
    source = compile_gate.source(name)
    for triton, reports in json.loads(compile_gate.RESULTS.read_text()).items():
        found = [report for report in reports if report["op"] == name]
        assert {report["architecture"] for report in found} == {80, 90, 100}
        assert {report["source"] for report in found} == {source}, f"{triton}: run `make gate`"
        assert compile_gate.judge(found) == []


def test_a_source_is_that_of_all_that_it_imports(tmp_path, monkeypatch):
    shutil.copytree(compile_gate.ROOT / "fastgen_kernels", tmp_path / "fastgen_kernels")
    monkeypatch.setattr(compile_gate, "ROOT", tmp_path)
    before = {name: compile_gate.source(name) for name in compile_gate.BUDGETS}
    file = tmp_path / "fastgen_kernels" / "upfirdn" / "kernel.py"
    text = file.read_text()
    file.write_text(text + "\n# a comment\n")
    assert {name: compile_gate.source(name) for name in before} == before
    file.write_text(text + "\nVALUE = 1\n")
    changed = {name for name in before if compile_gate.source(name) != before[name]}
    assert changed == {"upfirdn", "modulated_conv"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "triton"), [("adain", "installed"), ("group_norm", "oldest")])
def test_wide_rows_are_within_budget(name, triton):
    reports = compile_gate.compiled([name], folder(triton), module="tests.kernels.wide")
    assert {report["kernel"] for report in reports} > {"statistics_kernel"}
    assert compile_gate.judge(reports) == []


@pytest.fixture(scope="module")
def planted() -> dict[str, list[str]]:
    names = ["copy", "tensor_core", "tf32", "narrow", "coefficients", "sine", "spill", "no_mma", "two_dots"]
    reports = compile_gate.compiled(names, module="tests.kernels.planted")
    return {name: compile_gate.judge([r for r in reports if r["op"] == name]) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copy", "tensor_core", "tf32"])
def test_a_good_kernel_passes(planted, name):
    assert planted[name] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("narrow", "0% of the bytes of loads in 16-byte accesses"),
        ("coefficients", "0% of the bytes of loads in 16-byte accesses"),
        ("sine", "slow reduction of large angles"),
        ("spill", "bytes of local memory"),
        ("spill", "registers, 64 allowed"),
        ("no_mma", "without tensor-core instructions"),
        ("two_dots", "without tensor-core instructions"),
    ],
)
def test_a_planted_fault_is_seen(planted, name, complaint):
    for architecture in (80, 90, 100):
        about = [line for line in planted[name] if f"sm_{architecture}" in line]
        if not (complaint.endswith("allowed") and architecture == 80):  # there it spills instead
            assert any(complaint in line for line in about), about


def test_a_small_kernel_weighs_nothing():
    wide = {"programs": 1000, "warps": 4, "loads": {"16": 2}, "stores": {"16": 1}}
    small = {"programs": 1, "warps": 1, "loads": {"4": 8}, "stores": {"4": 1}}
    assert compile_gate.wide_share([wide, small], "loads") > 0.999
    assert compile_gate.wide_share([small], "loads") == 0.0
    assert compile_gate.wide_share([{**small, "loads": {}}], "loads") == 1.0


def test_what_cannot_be_launched_is_seen():
    report = {"op": "none", "case": "c", "dtype": "float32", "architecture": 80, "programs": 1, "kernel": "k"}
    report |= {"registers": 60, "warps": 64, "local_bytes": 0, "shared_bytes": 200 << 10, "dots": 0}
    report |= {"full_precision_dots": 0, "plain_dots": 0, "tensor_core": 0, "slow_trigonometry": False}
    report |= {"reads_tensors": True, "loads": {}, "stores": {}}
    lines = compile_gate.judge([report])
    assert [line for line in lines if "64 warps of 60 registers cannot be launched" in line]
    assert [line for line in lines if "no access of theirs was found" in line]
    assert [line for line in lines if "204800 bytes of shared memory do not fit" in line]


def test_a_kernel_that_does_not_compile_is_an_error():
    with pytest.raises(RuntimeError, match=r"compiling none such failed:[\s\S]*ValueError: none such"):
        compile_gate.compiled(["none such"], module="tests.kernels.planted")


def test_some_operations_are_recorded_beside_the_others(tmp_path, monkeypatch):
    recorded = json.loads(compile_gate.RESULTS.read_text())
    fresh = [report | {"registers": 1} for report in recorded["3.7.1"] if report["op"] == "normals"]
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(compile_gate.RESULTS.read_text())
    page.write_text("words\n" + compile_gate.TABLE + "old")
    monkeypatch.setattr(compile_gate, "RESULTS", results)
    monkeypatch.setattr(compile_gate, "PAGE", page)
    monkeypatch.setattr(compile_gate, "compiled", lambda names, triton=None: fresh)
    monkeypatch.setattr(compile_gate, "version", lambda triton=None: "3.6.0" if triton else "3.7.1")
    (tmp_path / "triton").mkdir()
    with pytest.raises(SystemExit):  # one triton of two
        compile_gate.main(["normals", "--record"])
    assert json.loads(results.read_text()) == recorded
    assert compile_gate.main(["normals", "--record", "--also", str(tmp_path)]) == 0
    now = json.loads(results.read_text())
    for triton, reports in recorded.items():
        assert [r for r in now[triton] if r["op"] == "normals"] == fresh
        others = [r for r in reports if r["op"] != "normals"]
        assert [r for r in now[triton] if r["op"] != "normals"] == others
    assert page.read_text() == "words\n" + compile_gate.TABLE + compile_gate.table(now)


def test_recorded_results_are_what_the_documentation_shows():
    results = json.loads(compile_gate.RESULTS.read_text())
    text = (compile_gate.ROOT / "docs" / "compile-gate.md").read_text()
    assert compile_gate.table(results) in text
    assert set(compile_gate.BUDGETS) == {report["op"] for reports in results.values() for report in reports}
