"""The run on a GPU, tried without one: stages, deadlines, and what is kept whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_run
from bench.gpu_stages import pytest_log, stage

ROOT = Path(__file__).resolve().parents[2]


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


def test_what_is_begun(tmp_path: Path) -> None:
    """What an earlier process of the stage has not tried, as long as its time is left."""
    first = stage.Stage("kernels", tmp_path, time.time() + 60, False, {})
    assert first.begins("a", 5.0)
    with first.attempt("a"):
        pass
    with first.attempt("b"):
        raise RuntimeError("noted")
    again = stage.Stage("kernels", tmp_path, time.time() + 60, False, {})
    other = stage.Stage("probes", tmp_path, time.time() + 60, False, {})
    assert [again.begins(name, 5.0) for name in "abc"] == [False, False, True]
    assert again.failed == {"b"}
    assert other.begins("a", 5.0)
    assert not other.begins("c", 600.0)
    assert [item["name"] for item in stage.read(tmp_path / stage.RESULTS) if item["kind"] == "skipped"] == [
        "c"
    ]


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
