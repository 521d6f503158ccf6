"""The tensors of a foreign flow, taken by name: what no one takes is an error, never lost in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastgen.errors import CheckpointError


class State:
    """A state dict that is used up. where: for messages."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        # `nn.DataParallel` lays a prefix before every name.
        parallel = bool(tensors) and all(name.startswith("module.") for name in tensors)
        self.left = {name.removeprefix("module.") if parallel else name: t for name, t in tensors.items()}
        self.names = tuple(self.left)
        self.where = where

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor, once. shape: if given, what it must have; None: any size. Raises CheckpointError."""
        if name not in self.left:
            raise CheckpointError(f"{self.where}: {name} is missing; is the file whole?")
        value = self.left.pop(name).detach()
        fits = len(shape) == value.dim() and all(
            wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True)
        )
        if shape and not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(f"{self.where}: {name} has shape {list(value.shape)}, expected [{wanted}]")
        return value

    def drop(self, *names: str) -> None:
        """Tensors that follow from others, such as a mask of triangles."""
        for name in names:
            self.left.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether the source has it, taken or not."""
        return name in self.names

    def count(self, prefix: str) -> int:
        """One more than the highest N of names ``prefix.N...``; 0 if there are none."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d{1,6})(?:\.|$)")
        return max((int(found[1]) + 1 for name in self.names if (found := pattern.match(name))), default=0)

    def numbers(self, prefix: str) -> list[int]:
        """Every N of names ``prefix.N...``, in order."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d{1,6})(?:\.|$)")
        return sorted({int(found[1]) for name in self.names if (found := pattern.match(name))})

    def under(self, prefix: str) -> set[str]:
        """What follows ``prefix.`` in the names, up to the next dot."""
        start = prefix + "."
        return {name[len(start) :].split(".")[0] for name in self.names if name.startswith(start)}

    def finish(self, supported: str) -> None:
        """Raise CheckpointError if a tensor was not taken."""
        if self.left:
            first = next(iter(self.left))
            raise CheckpointError(
                f"{self.where}: {len(self.left)} tensors belong to layers that are not supported, the first is "
                f"{first}; supported: {supported}"
            )


def precisely(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors) computed in float64, in the first tensor's type."""
    return function(*(tensor.detach().double() for tensor in tensors)).to(tensors[0].dtype)


def permutation_of(matrix: Tensor) -> Tensor:
    """The index of a permutation matrix [C, C]: row i of its product with x is x[index[i]]."""
    return matrix.argmax(1) if matrix.numel() else matrix.new_zeros(0, dtype=torch.int64)


def set_flag(flag: Tensor | bool) -> Tensor:
    """`initialised` of an ActNorm: a uint8 scalar."""
    return torch.as_tensor(flag).reshape(-1)[:1].ne(0).any().to(torch.uint8)
