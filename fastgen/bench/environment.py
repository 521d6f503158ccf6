"""What figures belong to: the machine, its versions, and the ceilings that it reaches in this run."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

import fastgen_kernels

from ..commands.info import doctor
from .timing import interleaved

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}  # larger than any cache
PRODUCT = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrix product that stands for the peak


def environment(device: torch.device) -> dict[str, Any]:
    """The device, the path that runs, threads, versions, CPU features; on CUDA its clocks."""
    found = doctor()
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else found["platform"],
        "operations": fastgen_kernels.select(device.type),
        "threads": torch.get_num_threads(),
        **{name: found["versions"][name] for name in ("fastgen", "torch", "triton")},
        "python": found["python"],
        "features": " ".join(found["cpu"]["features"]),
        **({"cuda": torch.version.cuda, **_clocks(device)} if cuda else {}),
    }


def _clocks(device: torch.device) -> dict[str, str]:
    """The driver's version and the clocks in MHz, where nvidia-smi is there and answers."""
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem"
    if (tool := shutil.which("nvidia-smi")) is None:
        return {}
    command = [tool, f"--id={device.index or 0}", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=8)
    except subprocess.TimeoutExpired:
        return {}
    return dict(zip(query.split(","), done.stdout.strip().split(", "), strict=False))


def copy_bandwidth(device: torch.device, rounds: int, clock: str = "wall") -> float:
    """Bytes per second of a copy, read and written, between tensors larger than any cache."""
    size = COPY_BYTES[device.type]
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    timing = interleaved({"copy": lambda: target.copy_(source)}, device, rounds=rounds, clock=clock)["copy"]
    return 2 * size / timing.median


def product_rate(device: torch.device, dtype: torch.dtype, rounds: int, clock: str = "wall") -> float:
    """FLOPs per second of a large square matrix product in `dtype`: the ceiling of compute."""
    n = PRODUCT[device.type]
    # Random: a GPU multiplies constants 10 % faster, because fewer wires change.
    a, b = (torch.randn(n, n, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    call = {"product": lambda: torch.mm(a, b, out=out)}
    timing = interleaved(call, device, rounds=rounds, clock=clock)["product"]
    return 2 * n**3 / timing.median


def cache_bytes(device: torch.device) -> int:
    """The second-level cache of a GPU, in which small tensors stay; on a CPU 0, where rates are for orientation."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
