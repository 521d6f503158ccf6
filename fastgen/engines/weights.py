"""The weights of an engine's networks: whether they have changed since something was made of them."""

from __future__ import annotations

import functools
from itertools import chain
from operator import attrgetter
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_post_hook


class Weights:
    """The modules, parameters and buffers of `network` as they are now.

    `changed` is asked before every call, so it compares flat lists: which objects the modules hold, the address of each
    tensor and, with `writes`, how often it was written in place. The tensors' memory is kept alive: else a new tensor
    could get the address of an old one. Writes through a tensor's ``.data`` are not counted by PyTorch, nor seen here.
    Those of fused optimisers are not counted either, but their steps are seen.

    sha256: of this state, that of the file it was read from or `fingerprint`; None until somebody asks.
    """

    sha256: str | None = None

    def __init__(self, network: nn.Module, *, writes: bool) -> None:
        self.modules, self._writes = list(network.modules()), writes
        # Views, which show what the tables hold at any time: a call of a small network takes 0.3 ms, and whatever is
        # asked before it is asked by loops in C.
        self._views = [
            table.values()
            for module in self.modules
            for table in (module._modules, module._parameters, module._buffers)
        ]
        self._objects: list[Any] = list(chain.from_iterable(self._views))
        self._ids = list(map(id, self._objects))
        tensors = [value for value in self._objects if isinstance(value, Tensor)]
        self._lazy = [tensor for tensor in tensors if is_lazy(tensor)]  # until their first call
        tensors = [tensor for tensor in tensors if not is_lazy(tensor)]
        self._memory = [tensor.detach() for tensor in tensors]
        # A tensor without memory of its own, such as a sparse one, is told apart by its identity.
        self._addressed = [tensor for tensor in tensors if _has_address(tensor)]
        self._counted = tensors if writes else []
        self._addresses = list(map(Tensor.data_ptr, self._addressed))
        self._versions = list(map(_version, self._counted))
        self._stepped = False  # by a fused optimiser
        if writes:
            _watch_optimisers()
            _WATCHING.add(self)

    def note_step(self, written: set[int]) -> None:
        """A fused optimiser has written the tensors with these identities."""
        self._stepped = self._stepped or not written.isdisjoint(self._ids)

    @property
    def changed(self) -> bool:
        """Whether a module, parameter or buffer was replaced, added, taken away or (with `writes`) written in place."""
        if self._stepped or list(map(id, chain.from_iterable(self._views))) != self._ids:
            return True
        if list(map(_version, self._counted)) != self._versions:
            return True
        try:
            moved = list(map(Tensor.data_ptr, self._addressed)) != self._addresses
        except RuntimeError:  # it has no memory of its own any more
            return True
        return moved or not all(map(is_lazy, self._lazy))

    @property
    def training(self) -> bool:
        """Whether a module is in training mode."""
        return any(map(_training, self.modules))


_version, _training = attrgetter("_version"), attrgetter("training")
_WATCHING: WeakSet[Weights] = WeakSet()


@functools.cache
def _watch_optimisers() -> None:
    """See the steps of optimisers with ``fused=True``, whose kernels do not count what they write."""

    def after(optimiser: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        written = {id(p) for group in optimiser.param_groups if group.get("fused") for p in group["params"]}
        for weights in list(_WATCHING) if written else ():
            weights.note_step(written)

    register_optimizer_step_post_hook(after)


def _has_address(tensor: Tensor) -> bool:
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def count_writes(network: nn.Module) -> None:
    """Replace tensors that were made in inference mode, whose writes PyTorch does not count, by copies that count."""
    copies: dict[int, Tensor] = {}
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is None or is_lazy(value) or _counts(value):
                    continue
                if id(value) not in copies:  # what is shared stays shared
                    copy = value.clone()
                    if isinstance(value, nn.Parameter):
                        copy = nn.Parameter(copy, requires_grad=value.requires_grad)
                    copies[id(value)] = copy
                table[name] = copies[id(value)]  # type: ignore[assignment]


def _counts(tensor: Tensor) -> bool:
    """Whether PyTorch counts the writes to `tensor`. (`is_inference` is not true of all whose writes it does not.)"""
    try:
        return tensor._version >= 0
    except RuntimeError:
        return False
