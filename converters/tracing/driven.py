"""A scheduler of another project, under our control for a step: its noise comes from us, and states stay float64.

Nothing is patched: PyTorch's own dispatch mode sees the operations that are called within the block, and no others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.errors import ConfigError

NORMAL = ("aten::randn", "aten::randn_like", "aten::normal", "aten::normal_", "aten::normal_functional")
NEW = ("aten::empty", "aten::zeros", "aten::ones", "aten::full")


class Draws:
    """The noises that step `step` of scheduler `name` may draw, in order. ConfigError for one too many."""

    def __init__(self, noise: Sequence[Tensor], name: str, step: int) -> None:
        self.left, self.name, self.step = list(noise), name, step
        self.shape = tuple(noise[0].shape)

    def next(self, shape: Sequence[int]) -> Tensor:
        """A noise of the state's shape."""
        if not self.left:
            raise ConfigError(
                f"step {self.step} draws noise too often; a table's row has one", argument=self.name
            )
        noise = self.left.pop(0)
        if tuple(shape) != self.shape:
            raise ConfigError(
                f"step {self.step} draws noise of shape {list(shape)}, not of the state's, "
                f"{list(self.shape)}",
                argument=self.name,
            )
        return noise.clone()


@contextmanager
def driven(scheduler: Any, draws: Draws) -> Iterator[None]:
    """Within the block `scheduler` gets its normal noise from `draws`, and rounds no state to less than float64.

    A scheduler whose attribute `noise_sampler` is a Brownian motion (diffusers' DPMSolverSDE) gets one made of `draws`.
    """
    if hasattr(scheduler, "noise_sampler"):
        if not isinstance(scheduler.noise_sampler, _Brownian):
            scheduler.noise_sampler = _Brownian()
        scheduler.noise_sampler.draws = draws
    with _Driven(draws):
        yield


class _Driven(TorchDispatchMode):
    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in NORMAL:
            return self._noise(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ConfigError(
                f"step {self.draws.step} draws other noise than normal: {name}", argument=self.draws.name
            )
        if name == "aten::_to_copy" and args[0].dtype == torch.float64 and args[0].dim() > 0:
            dtype = kwargs.get("dtype")
            if dtype is not None and dtype.is_floating_point:
                kwargs = {**kwargs, "dtype": torch.float64}
        if name in NEW and tuple(args[0])[-len(self.draws.shape) :] == self.draws.shape:
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            if dtype.is_floating_point:  # a buffer for states
                kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)

    def _noise(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """What any overload of the operations in NORMAL returns, from our noise."""
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        mean, std = given.get("mean", 0.0), given.get("std", 1.0)
        shape = given.get("size")
        if shape is None:
            tensors = [v for v in (given.get("self"), mean, std) if isinstance(v, Tensor)]
            shape = torch.broadcast_shapes(*(v.shape for v in tensors))
        value = mean + std * self.draws.next(shape)
        into = given.get("out", given["self"] if func._schema.name == "aten::normal_" else None)
        return value if into is None else into.copy_(value)


class _Brownian:
    """Increments of a Brownian motion W over any intervals: (W(b) - W(a)) / sqrt(|b - a|), one draw per new point."""

    def __init__(self) -> None:
        self.draws: Draws | None = None
        self.path: dict[float, Tensor] = {}

    def __call__(self, a: Any, b: Any) -> Tensor:
        a, b = float(a), float(b)
        if not self.path:
            self.path[a] = torch.zeros((), dtype=torch.float64, device="cpu")
        difference = self._at(b) - self._at(a)
        return difference / math.sqrt(abs(b - a))

    def _at(self, time: float) -> Tensor:
        if time in self.path:
            return self.path[time]
        assert self.draws is not None
        noise = self.draws.next(self.draws.shape)
        below = max((t for t in self.path if t < time), default=None)
        above = min((t for t in self.path if t > time), default=None)
        if below is None or above is None:
            nearest = above if below is None else below
            assert nearest is not None
            value = self.path[nearest] + math.sqrt(abs(time - nearest)) * noise
        else:  # a Brownian bridge
            share = (time - below) / (above - below)
            mean = (1.0 - share) * self.path[below] + share * self.path[above]
            value = mean + math.sqrt(share * (above - time)) * noise
        self.path[time] = value
        return value
