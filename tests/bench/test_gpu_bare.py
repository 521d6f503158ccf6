"""The run on a GPU from a checkout that nothing was installed from: every stage's plumbing, on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bench import gpu_run
from bench.gpu_stages import stage

from .test_gpu_run import outcomes

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("fastgen", "fastgen_kernels", "converters", "bench", "tests", "pyproject.toml", "Makefile")
NOT_THERE = ("diffusers", "normflows", "nflows", "zuko")  # baselines that a machine with a GPU may lack


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
