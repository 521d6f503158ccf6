"""Checks of an operation's arguments at its door. Every failure is an OperandError: argument, expected, received."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


class OperandError(ValueError):
    """An operation's argument has the wrong shape, type, device or value. argument: its name."""

    def __init__(self, message: str, *, argument: str = "") -> None:
        super().__init__(f"{argument}: {message}" if argument else message)
        self.argument = argument


def fail(name: str, expected: str, received: object) -> NoReturn:
    """Raise the error that every check raises."""
    raise OperandError(f"expected {expected}, received {received}", argument=name)


def tensor(
    name: str,
    value: Tensor,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    letters: str = "",
) -> None:
    """`value` is a tensor of `shape`, one of `dtypes`, on `device`.

    letters: what the shape's sizes are called, "[B, C]", for the message.
    """
    if not isinstance(value, Tensor):
        fail(name, "a torch.Tensor", type(value).__name__)
    if value.shape != tuple(shape):
        fail(name, f"shape {letters + ' = ' if letters else ''}{list(shape)}", list(value.shape))
    dtype(name, value, dtypes)
    if value.device != device:
        fail(name, f"a tensor on {device}, where the first argument is", f"one on {value.device}")


def rank(name: str, value: Tensor, dims: int, letters: str) -> None:
    """`value` is a tensor with `dims` axes, none of them empty; `letters` is its shape in words, "[B, C, H, W]"."""
    if not isinstance(value, Tensor):
        fail(name, "a torch.Tensor", type(value).__name__)
    if value.dim() != dims or 0 in value.shape:
        fail(name, f"shape {letters}, all sizes positive", list(value.shape))


def dtype(name: str, value: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """`value` has one of `dtypes`."""
    if value.dtype not in dtypes:
        fail(name, " or ".join(str(d) for d in dtypes), value.dtype)


def contiguous(name: str, value: Tensor) -> None:
    """`value` is contiguous."""
    if not value.is_contiguous():
        fail(name, "a contiguous tensor", f"strides {value.stride()}: pass {name}.contiguous()")


def number(name: str, value: float, expected: str = "a number") -> None:
    """`value` is a Python number: a tensor would have to be waited for."""
    if not isinstance(value, (int, float)):
        fail(name, expected, type(value).__name__)
