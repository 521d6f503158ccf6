"""Compile what an operation launches for GPUs that need not be there, and read what the compiler made of it.

A child of `compile_gate`, in a process without TRITON_INTERPRET: `python -m bench.compile_only OP...` prints a JSON
list with a report for every kernel of every production case, type and architecture. ptxas, cuobjdump and nvdisasm
come in triton's wheel.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

ARCHITECTURES = (80, 90, 100)
SCALAR_BYTES = {"i1": 1, "i8": 1, "i16": 2, "f16": 2, "bf16": 2, "i32": 4, "f32": 4, "i64": 8, "f64": 8}
SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
# A product of half-precision or tf32 tiles, as the compiler's first form writes it.
TENSOR_DOT = re.compile(r"tt\.dot\b[^\n]*?(?:inputPrecision = tf32\b[^\n]*|:[^\n]*x(?:bf16|f16)>\s*\*)")
NO_TF32 = re.compile(r"tt\.dot\b(?![^\n]*x(?:bf16|f16)>)(?![^\n]*inputPrecision = tf32)")


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
def compiling(architecture: int) -> Iterator[list[tuple[Any, int]]]:
    """Within the block every launch is compiled instead of run; the list receives (compiled kernel, programs)."""
    compiled: list[tuple[Any, int]] = []

    def launcher(kernel: Any, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            if callable(grid):
                raise NotImplementedError("a launch whose grid is a function: give the gate its size")
            compiled.append((kernel.warmup(*args, grid=grid, **options), math.prod(grid)))

        return launch

    launch, active = KernelInterface.__getitem__, triton.runtime.driver._active
    triton.runtime.driver.set_active(CompileOnlyDriver(architecture))
    KernelInterface.__getitem__ = launcher
    try:
        yield compiled
    finally:
        KernelInterface.__getitem__ = launch
        triton.runtime.driver._active = active


def width(operation: str) -> int:
    """Bytes that a thread moves by a SASS load or store."""
    for bits in (128, 64):
        if f".{bits}" in operation:
            return bits // 8
    if re.search(r"\.[US]8", operation):
        return 1
    return 2 if re.search(r"\.[US]16", operation) else 4


def accesses(operations: list[str], kind: str, scalars: list[str]) -> dict[int, int]:
    """Global accesses by width in bytes, without those of single values: {16: 4, 4: 1}.

    kind: "load" or "store". scalars: types of the values that the kernel moves singly, by every thread alike, such
    as coefficients; their cost is one broadcast, and says nothing about how tensors are read.
    """
    names = {"load": ("LDG.", "LDGSTS"), "store": ("STG.",)}[kind]
    counts: dict[int, int] = {}
    for operation in operations:
        if operation.startswith(names):
            counts[width(operation)] = counts.get(width(operation), 0) + 1
        elif operation.startswith({"load": "UTMALDG", "store": "UTMASTG"}[kind]):
            counts[16] = counts.get(16, 0) + 1
    for scalar in scalars:
        size = SCALAR_BYTES[scalar]
        if counts.get(size, 0):  # the compiler may have merged some
            counts[size] -= 1
    return {size: count for size, count in sorted(counts.items()) if count}


def report(kernel: Any) -> dict[str, Any]:
    """Registers, local and shared memory, global accesses by width, tensor-core instructions, slow-path sines."""
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
    operations = SASS.findall(assembly)
    first, ptx = kernel.asm["ttir"], kernel.asm["ptx"]
    scalars = re.findall(r"= tt\.load [^\n]*: !tt\.ptr<(\w+)>", first)
    scalar_stores = re.findall(r"\btt\.store [^\n]*: !tt\.ptr<(\w+)>", first)
    return {
        "kernel": kernel.metadata.name,
        "warps": kernel.metadata.num_warps,
        "registers": int(used["REG"]),
        "local_bytes": int(used["STACK"]) + int(used["LOCAL"]),  # a stack frame, or spilled registers
        "shared_bytes": kernel.metadata.shared,
        "instructions": sum(not name.startswith("NOP") for name in operations),
        "loads": accesses(operations, "load", scalars),
        "stores": accesses(operations, "store", scalar_stores),
        "dots": len(TENSOR_DOT.findall(first)),
        "full_precision_dots": len(NO_TF32.findall(first)),
        "tensor_core": sum(bool(re.match(r"HMMA|HGMMA|UTC\w*MMA", name)) for name in operations),
        # The table of 2/pi, which only the range reduction of large angles reads.
        "slow_trigonometry": "i2opi" in ptx,
    }


def production(name: str) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """(facts, a function that launches) of the production cases of operation `name`, in every type; or "normals"."""
    import fastgen_kernels

    if name == "normals":
        from fastgen_kernels.noise.kernel import normals

        for elements in (3072, 1, 105):  # a picture, one element, a size that divides by nothing
            seeds, steps = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
            facts = {"case": f"n{elements}", "dtype": "float32"}
            yield (
                facts,
                lambda seeds=seeds, steps=steps, elements=elements: normals(seeds, steps, 1, elements),
            )
        return
    op = fastgen_kernels.OPS[name]
    for case in op.cases:
        if case.production:
            for dtype in case.dtypes:
                arguments = case.make(torch.Generator().manual_seed(0), torch.device("cpu"), dtype)
                facts = {"case": case.name, "dtype": str(dtype).removeprefix("torch.")}
                yield facts, lambda arguments=arguments: op.fused(**arguments)


def reports(name: str) -> list[dict[str, Any]]:
    """A report for every kernel that the production cases of operation `name` launch, on every architecture."""
    made: list[dict[str, Any]] = []
    read: dict[
        str, dict[str, Any]
    ] = {}  # cases share kernels, and reading machine code takes longer than compiling
    for facts, launch in production(name):
        for architecture in ARCHITECTURES:
            with compiling(architecture) as compiled:
                launch()
            for kernel, programs in compiled:
                where = {"op": name, **facts, "architecture": architecture, "programs": programs}
                if kernel.hash not in read:
                    read[kernel.hash] = report(kernel)
                made.append(where | read[kernel.hash])
    return made


if __name__ == "__main__":
    json.dump([found for name in sys.argv[1:] for found in reports(name)], sys.stdout)
