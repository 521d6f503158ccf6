"""Compile what an operation launches for GPUs that need not be there, and read what the compiler made of it.

A child of `compile_gate`, in a process without TRITON_INTERPRET: `python -m bench.compile_only OP...` prints a JSON
list with a report for every kernel of every production case, type and architecture; `OP:90` for that architecture
alone. ptxas, cuobjdump and nvdisasm come in triton's wheel.
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


Place = tuple[str, str, str]  # file, line, column


def single_places(first: str, kind: str) -> set[Place]:
    """Where the source loads ("load") or stores ("store") single values only, such as coefficients.

    first: the compiler's first form of a kernel. Every thread moves a single value alike: its cost is one broadcast,
    and says nothing about how tensors are read.
    """
    named = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", first, re.MULTILINE))

    def place(name: str) -> Place | None:
        text = named.get(name, "")
        if found := re.match(r'"(?:[^"]*/)?([^"/]+)":(\d+):(\d+)', text):
            return found[1], found[2], found[3]
        inner = re.search(r"#loc\d*", text)  # a name, or a call: the place within what is called comes first
        return place(inner[0]) if inner else None

    moves = re.findall(rf"\btt\.{kind} .*: (!tt\.ptr|tensor).* loc\((#loc\d*)\)", first)
    places = {
        shape: {place(name) for found, name in moves if found == shape} for shape in ("!tt.ptr", "tensor")
    }
    return {where for where in places["!tt.ptr"] - places["tensor"] if where is not None}


def accesses(ptx: str, first: str, kind: str) -> dict[int, int]:
    """Global accesses of tensors by width in bytes a thread: {16: 4, 4: 1}; TMA's count as 16."""
    single, here = single_places(first, kind), None
    direct = re.compile(
        {"load": r"\bld\.global", "store": r"\bst\.global"}[kind] + r"[\w.:]*?(?:\.v(\d))?\.[bfus](\d+)"
    )
    tma = {
        "load": r"cp\.async\.bulk\.tensor[\w.:]*\.shared",
        "store": r"cp\.async\.bulk\.tensor[\w.:]*\.global\.shared",
    }[kind]
    counts: dict[int, int] = {}
    for line in ptx.splitlines():
        if found := re.search(r"\.loc\s.*//\s*([^\s:]+):(\d+):(\d+)", line):
            here = (found[1], found[2], found[3])
        size = 0
        if found := direct.search(line):
            size = 0 if here in single else int(found[1] or 1) * int(found[2]) // 8
        elif kind == "load" and (
            found := re.search(r"cp\.async\.c[ag]\.shared[\w.:]*\.global.*\],\s*(0x\w+|\d+)", line)
        ):
            size = int(found[1], 0)
        elif re.search(tma, line) and not (kind == "load" and ".global.shared" in line):
            size = 16
        if size:
            counts[size] = counts.get(size, 0) + 1
    return dict(sorted(counts.items()))


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
    return {
        "kernel": kernel.metadata.name,
        "warps": kernel.metadata.num_warps,
        "registers": int(used["REG"]),
        "local_bytes": int(used["STACK"]) + int(used["LOCAL"]),  # a stack frame, or spilled registers
        "shared_bytes": kernel.metadata.shared,
        "instructions": sum(not name.startswith("NOP") for name in operations),
        "loads": accesses(ptx, first, "load"),
        "stores": accesses(ptx, first, "store"),
        "reads_tensors": bool(re.search(r"\btt\.(load|descriptor_load) .*: (tensor|!tt\.tensordesc)", first)),
        "dots": len(TENSOR_DOT.findall(first)),
        "full_precision_dots": len(NO_TF32.findall(first)),
        # Products that the compiler gave to ordinary arithmetic: their results lie as other tensors do.
        "plain_dots": len(re.findall(r"\btt\.dot\b[^\n]*-> tensor<[^\n]*#blocked", kernel.asm["ttgir"])),
        "tensor_core": sum(bool(re.match(r"HMMA|HGMMA|UTC\w*MMA", name)) for name in operations),
        # The table of 2/pi, which only the range reduction of large angles reads.
        "slow_trigonometry": "i2opi" in ptx,
    }


def production(name: str) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """(facts, a function that launches) of the production cases of operation `name`, in every type; or "normals"."""
    import fastgen_kernels

    if name == "normals":
        from fastgen_kernels.noise.kernel import normals

        for elements in (3072, 1, 105):  # an image, one element, a size that divides by nothing
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
    """A report for every kernel that the production cases of an operation launch. name: OP, or OP:ARCHITECTURE."""
    name, _, only = name.partition(":")
    made: list[dict[str, Any]] = []
    read: dict[
        str, dict[str, Any]
    ] = {}  # cases share kernels, and reading machine code takes longer than compiling
    for facts, launch in production(name):
        for architecture in [int(only)] if only else ARCHITECTURES:
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
