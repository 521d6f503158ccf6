"""The tensors of a foreign flow, taken by name: what no one takes is an error, never lost in silence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastgen.errors import CheckpointError, ConfigError

from ..base import check_plain


class State:
    """A state dict that is used up. where: for messages. live: it is a module's, not a file's.

    Raises CheckpointError for tensors that are not plain numbers in memory.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str, live: bool = False) -> None:
        for name, tensor in tensors.items():
            check_plain(tensor, f"{where}: {name}")
        self.left = dict(tensors)
        self.names = tuple(self.left)
        self.where, self.live = where, live

    def peek(self, name: str) -> Tensor:
        """The tensor, which is left for `take`. Raises CheckpointError."""
        if name not in self.left:
            raise CheckpointError(f"{name} is missing; is the file whole?", argument=self.where)
        return self.left[name]

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor, once. shape: if given, what it must have; None: any size. Raises CheckpointError."""
        value = self.peek(name).detach()
        del self.left[name]
        fits = len(shape) == value.dim() and all(
            wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True)
        )
        if shape and not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"{name} has shape {list(value.shape)}, expected [{wanted}]", argument=self.where
            )
        return value

    def drop(self, *names: str) -> None:
        """Tensors that follow from others, such as a mask of triangles."""
        for name in names:
            self.left.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether the source has it, taken or not."""
        return name in self.names

    def count(self, prefix: str, most: int) -> int:
        """How many N there are in names ``prefix.N...``: 0 to the highest, without gaps.

        Raises CheckpointError for a gap, ConfigError for more than `most`.
        """
        numbers = self.numbers(prefix)
        for expected, number in enumerate(numbers):
            if number != expected:
                raise CheckpointError(
                    f"{prefix}.{expected} is missing, but there is {prefix}.{number}; is the file whole?",
                    argument=self.where,
                )
        if len(numbers) > most:
            raise ConfigError(
                f"{prefix}: has {len(numbers)} parts; at most {most} are supported", argument=self.where
            )
        return len(numbers)

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
                f"{len(self.left)} tensors belong to layers that are not supported, the first is "
                f"{first}; supported: {supported}",
                argument=self.where,
            )


def precisely(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors) computed in float64, in the first tensor's type."""
    return function(*(tensor.detach().double() for tensor in tensors)).to(tensors[0].dtype)


def permutation_of(matrix: Tensor, what: str) -> Tensor:
    """The index of a permutation matrix [C, C]: row i of its product with x is x[index[i]].

    Raises CheckpointError, with `what` in front, for any other matrix.
    """
    count = len(matrix)
    if not count:
        return matrix.new_zeros(0, dtype=torch.int64)
    index = matrix.ne(0).to(torch.uint8).argmax(1)  # of equal values the first
    exact = bool((matrix == torch.nn.functional.one_hot(index, count)).all())
    if not exact or len(index.unique()) != count:
        raise CheckpointError(
            "expected a permutation matrix: a 1 in every row and column, 0 elsewhere", argument=what
        )
    return index


def most(config: type, field: str) -> int:
    """The upper bound of a field of a config dataclass."""
    return int({f.name: f for f in dataclasses.fields(config)}[field].metadata["high"])


def set_flag(flag: Tensor | bool) -> Tensor:
    """`initialised` of an ActNorm: a uint8 scalar."""
    flag = flag if isinstance(flag, Tensor) else torch.tensor(flag, device="cpu")
    return flag.reshape(-1)[:1].ne(0).any().to(torch.uint8)
