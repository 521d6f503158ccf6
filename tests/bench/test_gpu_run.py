"""The run on a GPU, tried without one: stages, deadlines, what is kept, and what becomes of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from bench import gpu_record, gpu_run
from bench.gpu_stages import pytest_log, stage
from fastgen.bench.results import Results, Row
from fastgen.bench.timing import Timing

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("fastgen", "fastgen_kernels", "converters", "bench", "tests", "pyproject.toml", "Makefile")
NOT_THERE = ("diffusers", "normflows", "nflows", "zuko")  # rivals that a machine with a GPU may lack


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with stages of ours in place of the real ones."""
    folder = tmp_path / "checkout" / "bench" / "gpu_stages"
    folder.mkdir(parents=True)
    for name in ("__init__", "__main__", "stage"):
        (folder / f"{name}.py").write_text((ROOT / "bench" / "gpu_stages" / f"{name}.py").read_text())
    (folder.parent / "__init__.py").write_text("")
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path / "checkout")
    return folder


def run(tmp_path: Path, seconds: dict[str, float]) -> tuple[int, list[dict]]:
    out = tmp_path / "out"
    code = gpu_run.run(seconds, out, False, {}, tmp_path)
    return code, stage.read(out / stage.RESULTS)


def ended(pid: int) -> bool:
    """Whether the process is gone, within 20 seconds; one that nobody has waited for yet has no command line."""
    place = Path(f"/proc/{pid}/cmdline")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if not place.read_bytes():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def outcomes(items: list[dict]) -> dict[str, str]:
    return {item["name"]: item["outcome"] for item in items if item["kind"] == "stage"}


@pytest.mark.slow
def test_a_stage_that_fails_or_hangs_does_not_keep_the_next_one(stages: Path, tmp_path: Path) -> None:
    (stages / "first.py").write_text(
        "def run(stage):\n    stage.add('fact', 'a')\n    raise ValueError('mine')\n"
    )
    (stages / "second.py").write_text(
        "import subprocess, sys, time\n"
        "def run(stage):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    stage.add('fact', 'b', pid=child.pid)\n"
        "    time.sleep(600)\n"
    )
    (stages / "third.py").write_text(
        "def run(stage):\n"
        "    with stage.attempt('c'):\n"
        "        raise RuntimeError('noted')\n"
        "    stage.add('fact', 'd', left=stage.left())\n"
    )
    code, items = run(tmp_path, {"first": 10.0, "second": 2.0, "third": 30.0})
    assert code == 1
    assert outcomes(items) == {"first": "failed", "second": "out of time", "third": "done"}
    assert [item["name"] for item in items if item["kind"] != "stage"] == ["a", "b", "c", "d"]
    by_name = {item["name"]: item for item in items}
    assert by_name["c"]["error"] == "RuntimeError: noted"
    assert ended(by_name["b"]["pid"])  # what a stage started ends with it
    assert "ValueError: mine" in (tmp_path / "out" / "log.txt").read_text()


def test_time_that_a_stage_leaves_is_the_next_ones(stages: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (stages / f"{name}.py").write_text(
            "def run(stage):\n    stage.add('fact', stage.name, left=stage.left())\n"
        )
    code, items = run(tmp_path, {"first": 30.0, "second": 30.0})
    assert code == 0
    left = {item["name"]: item["left"] for item in items if item["kind"] == "fact"}
    assert left["second"] > 30 >= left["first"]


def started(tmp_path: Path, before: str = "") -> subprocess.Popen[bytes]:
    """A process that runs the stage `first`; the first item says the stage's process id."""
    code = (
        "import signal; from pathlib import Path; from bench import gpu_run\n"
        f"gpu_run.ROOT = Path({str(tmp_path / 'checkout')!r})\n"
        "signal.signal(signal.SIGTERM, gpu_run._interrupt)\n"
        f"{before}"
        "with gpu_run.linked():\n"
        f"    gpu_run.run({{'first': 60.0}}, Path({str(tmp_path / 'out')!r}), False, {{}}, Path({str(tmp_path)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def pid_of_the_stage(results: Path) -> int:
    """Waits for the first item."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if results.exists() and (items := stage.read(results)):
            return items[0]["pid"]
        time.sleep(0.05)
    raise AssertionError("no item within a minute")


def test_every_item_is_kept_when_the_run_is_killed(stages: Path, tmp_path: Path) -> None:
    (stages / "first.py").write_text(
        "import os, time\n"
        "def run(stage):\n"
        "    for i in range(5000):\n"
        "        stage.add('fact', str(i), pid=os.getpid(), text='x' * 5000)\n"
        "        time.sleep(0.001)\n"
    )
    results = tmp_path / "out" / stage.RESULTS
    process = started(tmp_path)
    pid = pid_of_the_stage(results)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and results.stat().st_size < 200_000:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        os.kill(pid, signal.SIGKILL)  # the stage's group outlives a run that is killed so
    assert ended(pid)
    lines = results.read_text().splitlines()
    assert len(lines) >= 40
    items = [json.loads(line) for line in lines]
    assert [item["name"] for item in items] == [str(i) for i in range(len(items))]
    assert all(len(item["text"]) == 5000 for item in items)


def test_a_stop_signal_ends_the_stage_and_takes_the_link_away(stages: Path, tmp_path: Path) -> None:
    (stages / "first.py").write_text(
        "import os, time\n"
        "def run(stage):\n"
        "    stage.add('fact', 'pid', pid=os.getpid(), linked=os.path.islink('fastgen/converters'))\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "checkout" / "fastgen").mkdir()
    results = tmp_path / "out" / stage.RESULTS
    process = started(tmp_path, before="gpu_run.importlib.util.find_spec = lambda name: None\n")
    pid = pid_of_the_stage(results)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert ended(pid)
    assert [item["linked"] for item in stage.read(results)] == [True]
    assert not (tmp_path / "checkout" / "fastgen" / "converters").is_symlink()


def test_values_that_json_has_no_form_for(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    stage.append(path, {"a": float("nan"), "b": (1, Path("x")), "c": {2: float("inf")}})
    with path.open("a") as file:
        file.write('{"half')
    assert stage.read(path) == [{"a": "nan", "b": [1, "x"], "c": {"2": "inf"}}]


@pytest.mark.parametrize(
    "arguments",
    [["--only", "nothing"], ["--again", "missing.txt"], ["--again", "none", "--old", "nowhere"]],
    ids=["stage", "failed", "old"],
)
def test_wrong_arguments(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        gpu_run.main([*arguments, "--dry", "--out", str(tmp_path)])
    assert error.value.code == 2


def test_without_a_gpu_a_dry_run_must_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_run, "has_gpu", lambda: False)
    assert gpu_run.main(["--out", str(tmp_path)]) == 2
    assert "--dry" in capsys.readouterr().err
    assert not (tmp_path / stage.RESULTS).exists()


ROW = Row("kernels", "reverse_step", "lsun64", "bfloat16", 0.5, Timing.of([1e-4] * 3), bytes=10)
ITEMS = [
    {
        "kind": "environment",
        "name": "environment",
        "values": {"device": "NVIDIA H100 80GB HBM3"},
        "dry": False,
    },
    {"kind": "ceiling", "name": "copy", "value": 3e12},
    {"kind": "row", "name": "r", "row": ROW.to_dict()},
    {"kind": "skipped", "name": "lsun16", "reason": "no time left"},
    {"kind": "fact", "name": "collected tests", "count": 3},
    {"kind": "test", "name": "t::a", "outcome": "passed"},
    {"kind": "test", "name": "t::b", "outcome": "failed", "error": "AssertionError: 2 > 1"},
    {"kind": "stage", "stage": "probes", "name": "probes", "outcome": "out of time", "seconds": 20.0},
    {
        "kind": "probe",
        "stage": "probes",
        "name": "chain",
        "us_per_node": {"plain": {"us": 1.2, "low": 1.1, "high": 1.3}},
    },
    {
        "kind": "old_new",
        "stage": "old_new",
        "name": "adain vgg16",
        "outcome": "passed",
        "old_over_new": [1.0, 1.1, 1.2],
        "seconds": {"old": [1e-4] * 3, "new": [1e-4] * 3},
    },
    {
        "kind": "step_kernels",
        "stage": "networks",
        "name": "cifar10",
        "kernels": 5,
        "microseconds": 9,
        "rows": [["k", 5, 9]],
    },
]


def test_a_run_becomes_results(tmp_path: Path) -> None:
    found = gpu_record.record(ITEMS)
    assert gpu_record.device_name(found) == "h100-80gb-hbm3"
    assert found.ceilings == {"copy": 3e12}
    assert found.left_out == {"lsun16": "no time left", "the rest of stage probes": "out of time"}
    assert found.evidence["tests"]["counts"] == {"passed": 1, "failed": 1}
    path = tmp_path / "h100.json"
    found.write(path)
    again = Results.read(path)
    assert again.rows == [ROW]
    assert again.evidence == found.evidence
    page = gpu_record.page(again.evidence)
    for words in (
        "Of 3: 1 failed, 1 passed",
        "`t::b`",
        "| chain | plain | 1.2 (1.1 - 1.3) |",
        "| `k` | 5 | 9 |",
        "1.10 (1.00",
    ):
        assert words in page


def test_a_second_run_corrects_the_first() -> None:
    mended = {"kind": "test", "name": "t::b", "outcome": "passed"}
    quicker = {"kind": "row", "name": "r", "row": {**ROW.to_dict(), "error": 0.25}}
    failure = {"kind": "failure", "stage": "smoke", "name": "adain", "error": "illegal access"}
    other = {"kind": "failure", "stage": "smoke", "name": "group_norm", "error": "illegal access"}
    check = {"kind": "check", "stage": "smoke", "name": "adain", "outcome": "failed"}
    attempt = {"kind": "attempt", "stage": "smoke", "name": "adain"}
    stages = {"kind": "stage", "stage": "probes", "name": "probes", "outcome": "done", "seconds": 9.0}
    measured = {"kind": "row", "name": "lsun16", "row": {**ROW.to_dict(), "case": "lsun16"}}
    second = [ITEMS[0], mended, quicker, stages, measured, {**check, "outcome": "passed"}, attempt]
    found = gpu_record.record([*ITEMS, failure, other, check, *second])
    assert [item["name"] for item in found.evidence["failure"]] == ["group_norm"]
    assert [item["outcome"] for item in found.evidence["check"]] == ["passed"]
    assert found.evidence["tests"] == {"collected": 3, "counts": {"passed": 2}, "failed": {}}
    assert [row.error for row in found.rows] == [0.25, 0.5]
    assert found.left_out == {}


@pytest.mark.parametrize(
    "items",
    [
        ITEMS[1:],
        [{**ITEMS[0], "dry": True}],
        [ITEMS[0], {**ITEMS[0], "values": {"device": "NVIDIA H200"}}],
    ],
    ids=["ended at once", "dry", "two devices"],
)
def test_what_is_no_run_on_a_gpu_is_not_recorded(items: list[dict]) -> None:
    with pytest.raises(ValueError, match="run"):
        gpu_record.record(items)


def bare(tmp_path: Path) -> tuple[Path, dict[str, str], str]:
    """A checkout that nothing was installed from, an environment for it, and a Python that has PyTorch and no fastgen.

    That Python is the one below this virtual environment; it finds the packages by PYTHONPATH, by which links to
    checkouts (.pth files) are not followed.
    """
    checkout = tmp_path / "bare"
    listed = ["git", "ls-files", "-z", "-co", "--exclude-standard", *KEPT]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in NOT_THERE:
        (blocked / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('No module named {name!r}', name={name!r})\n"
        )
    paths = [str(blocked), sysconfig.get_paths()["purelib"]]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "VIRTUAL", "TRITON"))
    }
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return checkout, {**environment, "PYTHONPATH": os.pathsep.join(paths)}, str(python)


@pytest.mark.slow
def test_a_dry_run_from_a_bare_checkout(tmp_path: Path) -> None:
    """Every stage's plumbing, where nothing is installed and nothing but the standard tools is there."""
    checkout, environment, python = bare(tmp_path)
    missing = subprocess.run(
        [python, "-c", "import fastgen.converters"], cwd=checkout, env=environment, capture_output=True
    )
    assert missing.returncode != 0  # it is bare indeed
    done = subprocess.run(
        ["make", "gpu", "DRY=1", f"OUT={tmp_path / 'out'}", f"PYTHON={python}"],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    items = stage.read(tmp_path / "out" / stage.RESULTS)
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()[-4000:]
    assert outcomes(items) == dict.fromkeys(gpu_run.STAGES, "done")
    assert {item["kind"] for item in items} >= {
        "environment", "fact", "check", "ceiling", "row", "test", "step_kernels", "probe", "stage",
    }  # fmt: skip
    assert not [
        item for item in items if item["kind"] == "failure" or item.get("outcome") in ("failed", "error")
    ]
    assert not (checkout / "fastgen" / "converters").exists()  # the link is gone
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.jsonl", "failed.txt", "log.txt"}


@pytest.mark.slow
def test_a_dry_second_run_from_a_bare_checkout(tmp_path: Path) -> None:
    """The tests that failed, changed kernels old against new, and the sanitizer's tests."""
    checkout, environment, python = bare(tmp_path)
    old = tmp_path / "old"
    (old / "fastgen_kernels").parent.mkdir()
    subprocess.run(["cp", "-r", str(checkout / "fastgen_kernels"), str(old)], check=True)
    with (old / "fastgen_kernels" / "adain" / "kernel.py").open("a") as file:
        file.write("# changed\n")
    failed = (
        tmp_path / "out" / "failed.txt"
    )  # where the first run left it: the second one writes its own there
    failed.parent.mkdir()
    name = "tests/runtime/test_capture.py::test_eager_calls_the_function_itself"
    failed.write_text(f"{name}\n")
    done = subprocess.run(
        ["make", "gpu-again", "DRY=1", f"OUT={tmp_path / 'out'}", f"PYTHON={python}", f"FAILED={failed}", f"OLD={old}"],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    items = stage.read(tmp_path / "out" / stage.RESULTS)
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()[-4000:]
    assert outcomes(items) == dict.fromkeys(gpu_run.AGAIN, "done")
    assert [item["name"] for item in items if item["kind"] == "test"] == [name]
    (compared,) = [item for item in items if item["kind"] == "old_new"]
    assert compared["name"].startswith("adain ")
    assert compared["files"]["old"] != compared["files"]["new"]


@pytest.mark.slow
def test_the_tests_for_a_gpu_can_be_collected_where_little_is_installed(tmp_path: Path) -> None:
    checkout, environment, python = bare(tmp_path)
    (checkout / "fastgen" / "converters").symlink_to(Path("..") / "converters")
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-m",
        "gpu and not slow",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "tests/kernels", "tests/runtime", "tests/engines", "tests/bench"],
        cwd=checkout, env={**environment, "PYTHONPATH": f"{checkout}:{environment['PYTHONPATH']}"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "error" not in done.stdout.splitlines()[-1]
    found = re.search(r"(\d+)/\d+ tests collected", done.stdout)
    assert found is not None
    assert int(found[1]) > 300


def test_a_broken_process_is_replaced_by_one_that_goes_on(stages: Path, tmp_path: Path) -> None:
    """As after an illegal access, which no later call of that process survives."""
    (stages / "first.py").write_text(
        "from bench.gpu_stages import stage as module\n"
        "def run(stage):\n"
        "    broken = []\n"
        "    module.device_works = lambda: not broken\n"
        "    for name in ('a', 'b', 'c'):\n"
        "        if stage.tried(name):\n"
        "            continue\n"
        "        with stage.attempt(name):\n"
        "            if name == 'b':\n"
        "                broken.append(1)\n"
        "            if broken:\n"
        "                raise RuntimeError('illegal access')\n"
        "            stage.add('fact', name)\n"
    )
    code, items = run(tmp_path, {"first": 30.0})
    assert code == 1  # an item failed
    assert outcomes(items) == {"first": "done"}
    assert [(item["kind"], item["name"]) for item in items[:-1]] == [
        ("fact", "a"), ("attempt", "a"), ("failure", "b"), ("fact", "c"), ("attempt", "c"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_worker_in_which_cuda_is_broken_leaves_its_tests_to_others(tmp_path: Path) -> None:
    """The test that broke it is told once with its own error, and no other test fails of it."""
    (tmp_path / "conftest.py").write_text(
        "from bench.gpu_stages import pytest_log\nBROKEN = []\npytest_log.device_works = lambda: not BROKEN\n"
    )
    (tmp_path / "test_many.py").write_text(
        "import time, pytest\nimport conftest\n"
        "@pytest.mark.parametrize('i', range(40))\n"
        "def test_one(i):\n"
        "    time.sleep(0.02)\n"
        "    if i == 7:\n"
        "        conftest.BROKEN.append(1)\n"
        "    assert not conftest.BROKEN, 'illegal access'\n"
    )
    results = tmp_path / "results.jsonl"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {pytest_log.NAME: str(results), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "worksteal",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-p", "bench.gpu_stages.pytest_log", "test_many.py"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    found = [item for item in stage.read(results) if item["kind"] == "test"]
    failed = [item for item in found if item["outcome"] != "passed"]
    assert [item["name"] for item in failed] == ["test_many.py::test_one[7]"]
    assert "illegal access" in failed[0]["error"]
    assert len({item["name"] for item in found}) == 40
