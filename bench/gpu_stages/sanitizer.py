"""A few tests of kernels under compute-sanitizer, which sees accesses outside of any allocation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import deque

from .stage import Stage

TESTS = [
    "tests/kernels/test_contract.py",
    "-k",
    "test_parity and (one or ragged or pixel or tiny) and float32",
]


def run(stage: Stage) -> None:
    """Report the tool's summary; exits with the tool's code: not 0 where it found an error or a test failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-m", "not gpu and not slow" if stage.dry else "gpu and not slow", *TESTS]
    tool = shutil.which("compute-sanitizer")
    if tool is None and not stage.dry:
        stage.add("fact", "compute-sanitizer", missing=True)
        return
    # PyTorch's allocator hands out parts of large blocks, in which an access beyond a tensor is not seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    watched = [] if stage.dry else [str(tool), "--tool", "memcheck", "--error-exitcode", "9"]
    # Line by line into the log, so that a run that is ended by its deadline leaves its output.
    process = subprocess.Popen(
        [*watched, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=60)
    for line in process.stdout:
        print(line, end="", flush=True)
        last.append(line)
    code = process.wait()
    outcome = "passed" if code == 0 else "failed"
    stage.add("check", "compute-sanitizer", outcome=outcome, code=code, text="".join(last)[-3000:])
    sys.exit(code)
