"""Modules built in float32 whatever PyTorch's default type is; and without memory and without initial values, for
weights that come from somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# On `meta` tensors these run in Python, in code that imports torch._dynamo: seconds, for values that nobody sees.
FILLS = frozenset(
    getattr(Tensor, name)
    for name in (
        "normal_",
        "uniform_",
        "exponential_",
        "log_normal_",
        "cauchy_",
        "geometric_",
        "random_",
        "bernoulli_",
    )
)
DRAWS = frozenset({torch.randn, torch.rand})
# What makes tensors of the default type; of the second, where its values are no whole numbers.
MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.eye, torch.linspace, *DRAWS})
GUESSING = frozenset({torch.tensor, torch.full, torch.arange})


class _NoValues(TorchFunctionMode):
    """Random numbers are not drawn, and ``torch.nn.init`` does nothing. Of this thread alone, as all such modes."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in FILLS:
            return args[0]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        if func in DRAWS:
            given.pop("generator", None)
            return torch.empty(*args, **given)
        return func(*args, **given)


class _Float32(TorchFunctionMode):
    """Tensors made without a type are float32 where they would be of PyTorch's default type. Of this thread alone."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if given.get("dtype") is None and (
            func in MAKERS or (func in GUESSING and func(*args, **given).is_floating_point())
        ):
            given["dtype"] = torch.float32
        return func(*args, **given)


@contextmanager
def in_float32() -> Iterator[None]:
    """Within the block, modules that are built are in float32, whatever PyTorch's default type is."""
    if torch.get_default_dtype() == torch.float32:
        yield
        return
    with _Float32():
        yield


@contextmanager
def without_values() -> Iterator[None]:
    """Within the block, modules that are built have their shapes and types, on `meta`, and no values.

    It costs no memory, whatever a configuration asks for, and little time, unless a constructor computes with its
    tensors: PyTorch does that for `meta` tensors in Python too. One that must, asks ``tensor.is_meta`` first. Fill the
    modules by ``module.load_state_dict(state, assign=True)``.
    """
    with torch.device("meta"), _NoValues():
        yield
