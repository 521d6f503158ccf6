"""Compile what an operation launches for a GPU's architecture, without a GPU, and read what the compiler
made.

Run as a script, in a process without TRITON_INTERPRET: `python aot.py 90 reverse_step` prints a JSON list
with a report for every case, in all types where it is a production case. The tools come in triton's wheel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface


class CompileOnlyDriver:
    """Stands in for the CUDA driver, so that launches on CPU tensors can be compiled for `architecture`."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # a slot of the kernel cache for each

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiling(architecture: int) -> Iterator[list[Any]]:
    """Within the block every launch is compiled instead of run; the list receives the compiled kernels."""
    compiled: list[Any] = []

    def launcher(kernel: Any, grid: Any) -> Any:
        return lambda *args, **options: compiled.append(kernel.warmup(*args, grid=grid, **options))

    launch, active = KernelInterface.__getitem__, triton.runtime.driver._active
    triton.runtime.driver.set_active(CompileOnlyDriver(architecture))
    KernelInterface.__getitem__ = launcher
    try:
        yield compiled
    finally:
        KernelInterface.__getitem__ = launch
        triton.runtime.driver._active = active


def report(kernel: Any) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory, and counts of global memory accesses by width."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tools = triton.knobs.nvidia
        commands = [tools.cuobjdump.path, "--dump-resource-usage"], [tools.nvdisasm.path, "-c"]
        resources, assembly = (
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", resources))
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", assembly)
    accesses = [name for name in operations if name.startswith(("LDG.", "STG."))]
    return {
        "kernel": kernel.metadata.name,
        "registers": int(used["REG"]),
        "local_bytes": int(used["STACK"]) + int(used["LOCAL"]),  # a stack frame, or spilled registers
        "shared_bytes": kernel.metadata.shared,
        "instructions": sum(not name.startswith("NOP") for name in operations),
        "wide_loads": sum(name.startswith("LDG") and ".128" in name for name in accesses),
        "wide_stores": sum(name.startswith("STG") and ".128" in name for name in accesses),
        "loads": sum(name.startswith("LDG") for name in accesses),
        "stores": sum(name.startswith("STG") for name in accesses),
    }


def reports(architecture: int, name: str) -> list[dict[str, Any]]:
    """A report for every kernel that the cases of operation `name` launch, or that fills a tensor for "normals"."""
    import fastgen_kernels

    if name == "normals":
        return noise_reports(architecture)
    op = fastgen_kernels.OPS[name]
    made = []
    for case in op.cases:
        for dtype in case.dtypes if case.production else case.dtypes[-1:]:
            arguments = case.make(torch.Generator().manual_seed(0), torch.device("cpu"), dtype)
            with compiling(architecture) as compiled:
                op.fused(**arguments)
            facts = {"case": case.name, "production": case.production, "dtype": str(dtype)}
            made += [facts | report(kernel) for kernel in compiled]
    return made


def noise_reports(architecture: int) -> list[dict[str, Any]]:
    """A report for `normals` of a picture, of one element, and of a size that divides by nothing."""
    from fastgen_kernels.noise.kernel import normals

    made = []
    for elements in (3072, 1, 105):
        seeds, steps = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        with compiling(architecture) as compiled:
            normals(seeds, steps, 1, elements)
        facts = {"case": f"n{elements}", "production": False, "dtype": "torch.float32"}
        made += [facts | report(kernel) for kernel in compiled]
    return made


if __name__ == "__main__":
    json.dump(reports(int(sys.argv[1]), sys.argv[2]), sys.stdout)
