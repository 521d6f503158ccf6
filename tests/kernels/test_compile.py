"""What the compiler makes of the kernels for other GPUs: no spills, few registers, wide accesses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# 64 registers leave room for 32 warps on a multiprocessor, which a memory-bound kernel needs to hide its
# loads.
MAX_REGISTERS = {"reverse_step": 64, "normals": 64}
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("name", MAX_REGISTERS)
def test_compiled(name, architecture):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("aot.py")), str(architecture), name]
    environment["PYTHONPATH"] = str(ROOT)
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 0, child.stderr
    reports = json.loads(child.stdout)
    assert reports
    for report in reports:
        facts = {
            key: report[key] for key in ("case", "dtype", "registers", "instructions", "wide_loads", "loads")
        }
        print(architecture, facts)
        assert report["local_bytes"] == 0, report
        if report["production"] or name == "normals":
            assert report["registers"] <= MAX_REGISTERS[name], report
        if report["production"]:
            # At least the float32 state moves in 128-bit accesses, both ways.
            assert report["wide_loads"] >= 1, report
            assert report["wide_stores"] >= 1, report
