"""The tests that need a GPU, on all cores: the workers compile each other's kernels into one cache."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from .pytest_log import NAME
from .stage import RESULTS, Stage

FOLDERS = ("tests/kernels", "tests/runtime", "tests/engines", "tests/bench")
MOST_WORKERS = 14  # each has a CUDA context of half a GiB
TEST_SECONDS = 45  # a test that takes longer is ended
# Plumbing: a few tests that need no GPU.
DRY = (
    "tests/runtime/test_capture.py",
    "tests/kernels/test_contract.py::test_reference_parity",
    "-k",
    "test_capture or one",
)


def run(stage: Stage) -> None:
    """Every test, or those of the option `failed`. Raises SystemExit where one fails."""
    again, failed = "again" in stage.options, stage.options.get("failed")
    chosen = list(DRY if stage.dry else FOLDERS)
    if again:
        chosen = [] if failed is None else [line for line in Path(failed).read_text().splitlines() if line]
        if not chosen:
            stage.add("fact", "failed tests", count=0)
            return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "bench.gpu_stages.pytest_log",
        "--continue-on-collection-errors",
    ]
    command += ["-p", "no:cacheprovider", "-m", "not gpu and not slow" if stage.dry else "gpu and not slow"]
    if importlib.util.find_spec("xdist") is not None:
        workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 2) - 2, len(chosen) if again else MOST_WORKERS))
        command += ["-n", str(workers), "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]
    if stage.dry and not again:
        collect(stage)
    environment = {**os.environ, NAME: str(stage.folder / RESULTS)}
    sys.stdout.flush()
    sys.exit(subprocess.run([*command, *chosen], env=environment, check=False).returncode)


def collect(stage: Stage) -> None:
    """Dry: whether the tests that need a GPU can be collected here."""
    asked = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "gpu and not slow"]
    asked += ["-p", "no:cacheprovider", *FOLDERS]
    out = subprocess.run(asked, capture_output=True, text=True, check=False)
    outcome = "passed" if out.returncode == 0 else "failed"
    stage.add("check", "collection", outcome=outcome, text=out.stdout[-500:])
