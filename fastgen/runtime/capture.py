"""Capture: a step function becomes something that can be replayed.

``eager`` calls the function again; ``cuda`` captures a CUDA graph (`cuda_graph.py`). ``recorded`` is a CPU stand-in
for a CUDA graph with the semantics that matter: the Python body runs once, replay repeats the recorded operations on
the same tensors, Python values seen at capture stay frozen, and what a graph cannot hold (host syncs, host random
numbers, copies to or from another device) is refused at capture. ``.tolist()`` and ``.numpy()`` escape it: they read
memory without an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import CaptureError
from .cuda_graph import CudaGraphs

Step = Callable[[], None]
P = ParamSpec("P")
R = TypeVar("R")

aten = torch.ops.aten
HOST_SYNCS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.masked_scatter.default,
    aten.repeat_interleave.Tensor,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
ALIASES = {aten.lift_fresh.default, aten.detach.default, aten.alias.default}


def plainly(method: Callable[P, R]) -> Callable[P, R]:
    """Run `method` without gradients, inference mode and autocast, whatever the caller's mode.

    Buffers made in it outlive the caller's mode.
    """

    @wraps(method)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        # To enter a mode takes as long as a small layer: only those that the caller is not in already.
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return inner(*args, **kwargs)
        if torch.is_grad_enabled():
            with torch.no_grad():
                return inner(*args, **kwargs)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return method(*args, **kwargs)
        return method(*args, **kwargs)

    return inner


def eager(step: Step) -> Step:
    """No capture: replaying is calling."""
    return step


def recorded(step: Step) -> Step:
    """Record `step` once on CPU tensors; the returned function repeats the recording. Raises CaptureError."""
    step()  # as on a GPU, where libraries pick their algorithms and kernels compile before capture
    tape = _Tape()
    with tape:
        step()
    return tape.replay


# How the steps of a loop on a device are captured; one capture function is made per loop.
BACKENDS: dict[str, Callable[[torch.device], Callable[[Step], Step]]] = {
    "eager": lambda device: eager,
    "recorded": lambda device: recorded,
    "cuda": CudaGraphs,
}


def _by_mask(indices: Sequence[Tensor | None]) -> bool:
    """Whether x[indices] has a shape that depends on values: a mask's number of true entries."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _dropout(func: Any, args: tuple, kwargs: dict) -> float | None:
    """The dropout rate of an operation that has one (attention is random only where it drops), else None."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return kwargs.get("dropout_p", args[i] if i < len(args) else argument.default_value)
    return None


class _Tape(TorchDispatchMode):
    """Operations below autograd, with their arguments and the tensors they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in HOST_SYNCS or (func in INDEXED and _by_mask(args[1])):
            raise CaptureError(f"{func} in a captured step: the host would have to wait for a device value")
        if torch.Tag.nondeterministic_seeded in func.tags and _dropout(func, args, kwargs) != 0:
            raise CaptureError(f"{func} in a captured step: its random numbers come from the host")
        if func is aten._to_copy.default and kwargs.get("device") not in (None, args[0].device):
            raise CaptureError(f"copy to {kwargs['device']} in a captured step")
        out = func(*args, **kwargs)
        if not func.is_view and func not in ALIASES:  # views alias storage that replay refills in place
            outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            if outputs or func._schema.is_mutable:
                self.entries.append((func, args, kwargs, outputs))
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, outputs in self.entries:
                fresh = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
                for old, new in zip(outputs, fresh, strict=True):
                    if old.data_ptr() != new.data_ptr():  # in-place operations return their argument
                        old.copy_(new)
