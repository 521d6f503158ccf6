"""Memory with a fence around it: what a kernel reads or writes beyond its tensors shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PAD = 128  # elements before and behind; keeps the 16-byte alignment that launches rely on
UNWRITTEN = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
WRITTEN = {aten.clone.default, aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}


def sentinel(dtype: torch.dtype) -> Any:
    """A finite value that no result should hold."""
    if dtype.is_floating_point:
        return 777.0
    return True if dtype == torch.bool else -99


def guarded(tensor: Tensor, fill: Any) -> tuple[Tensor, Tensor]:
    """A copy with the same strides in the middle of a buffer of `fill`, and the whole buffer."""
    if not tensor.numel():
        return tensor, tensor.new_empty(0)
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    buffer = torch.full((length + 2 * PAD,), fill, dtype=tensor.dtype, device=tensor.device)
    return buffer[PAD:].as_strided(tensor.shape, tensor.stride()).copy_(tensor), buffer


def outside(buffer: Tensor, view: Tensor) -> Tensor:
    """What of the buffer does not belong to the view."""
    mine = torch.zeros(buffer.shape, dtype=torch.bool, device=buffer.device)
    if view.numel():
        mine[PAD:].as_strided(view.shape, view.stride()).fill_(True)
    return buffer[~mine]


def fenced(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with NaN (or sentinels) around every tensor, and between its elements where it has gaps."""
    return {
        name: guarded(value, float("nan") if value.dtype.is_floating_point else sentinel(value.dtype))[0]
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }


@dataclass
class Allocation:
    """A tensor given out under :class:`Fences`."""

    view: Tensor
    buffer: Tensor

    def intact(self) -> bool:
        """Whether nothing was written around the view."""
        return bool((outside(self.buffer, self.view) == sentinel(self.buffer.dtype)).all())


@dataclass
class Fences(TorchDispatchMode):
    """Within the block, every new tensor lies in a padded buffer, and is filled with a sentinel where it comes
    uninitialised: an element that nobody writes shows as a wrong result."""

    allocations: list[Allocation] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func not in UNWRITTEN | WRITTEN or not out.numel():
            return out
        if func in UNWRITTEN:
            out.fill_(sentinel(out.dtype))
        view, buffer = guarded(out, sentinel(out.dtype))
        self.allocations.append(Allocation(view, buffer))
        return view
