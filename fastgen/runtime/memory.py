"""How much memory is free, and what a network's layers make of one sample: how many samples may go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

SHARE = 0.5  # of what is free now: others need some, too
GROUP = Path("/sys/fs/cgroup")  # the limits of a container


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still get on `device`; None where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        return min(available, *_of_group())
    return None


def _of_group() -> list[int]:
    """What is left of a container's limit, if it has one; always something beyond any machine."""
    left = [1 << 60]
    with suppress(OSError, ValueError):
        limit, used = ((GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        left.append(max(0, int(limit) - int(used)))  # ValueError: "max", no limit
    return left


def output_bytes(networks: Iterable[nn.Module], call: Callable[[], object]) -> int:
    """Bytes of everything that the layers of `networks` return during `call`: more than is ever alive at once."""
    total = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal total
        total += sum(
            leaf.numel() * leaf.element_size() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)
        )

    layers = {layer for network in networks for layer in network.modules() if not list(layer.children())}
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return total


def fitting(free: int | None, bytes_each: int, most: int) -> int:
    """How many samples of `bytes_each` fit into a share of `free`: `most`, or else a power of two, at least 1."""
    if free is None or bytes_each * most <= free * SHARE:
        return most
    return 1 << (max(1, int(free * SHARE) // bytes_each).bit_length() - 1)
