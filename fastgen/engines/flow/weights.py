"""A flow's weights in an engine: where and in which types they lie, and whether they have changed since."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.flow.coupling import Coupling
from ...models.flow.flow import Flow
from ...runtime.device import DTYPES, choose_dtype


def place(
    flow: Flow, device: torch.device, dtype: str | torch.dtype | None
) -> tuple[torch.dtype, torch.dtype]:
    """Move `flow`; the type of its couplings' networks, and that of everything else. Raises ConfigError.

    dtype: as ``FlowEngine`` takes it. Filters of convolutions come to lie channels-last.
    """
    flow.to(device)
    couplings = [m for layers in flow.scales for m in layers if isinstance(m, Coupling)]  # type: ignore[attr-defined]
    if dtype is None:
        own = next((p.dtype for p in flow.parameters()), torch.float32)
        networks = (p.dtype for c in couplings for p in c.network.parameters())
        chosen = next(networks, own)
        state = torch.promote_types(chosen, torch.float32)
    elif dtype in ("float64", torch.float64):
        chosen = state = torch.float64
        flow.to(dtype=state)
    else:
        try:
            chosen = torch.float32 if dtype == "auto" else choose_dtype(dtype, device)
        except ConfigError:
            known = ", ".join((*DTYPES, "float64"))
            raise ConfigError(f"expected auto, {known}, got {dtype!r}", argument="dtype") from None
        state = torch.float32
        flow.to(dtype=state)
    for coupling in couplings:
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        coupling.network.to(dtype=None if dtype is None else chosen, **layout)
    return chosen, state


class Weights:
    """The modules, parameters and buffers of `flow` as they are now.

    `changed` is asked before every call, so it compares flat lists: which objects hang in the flow, where each tensor
    lies, how often it was written in place. The tensors' memory is kept alive: else a new tensor could come to lie
    where an old one lay. What a tensor's ``.data`` is written through is not counted by PyTorch, nor seen here.
    """

    def __init__(self, flow: nn.Module) -> None:
        self.modules = list(flow.modules())
        self._tables = [
            table
            for module in self.modules
            for table in (module._modules, module._parameters, module._buffers)
        ]
        self._objects = self._hanging()
        self._ids = [id(value) for value in self._objects]
        self._tensors = [value for value in self._objects if isinstance(value, Tensor)]
        self._memory = [tensor.detach() for tensor in self._tensors]
        self._stamps = self._stamp()

    @property
    def changed(self) -> bool:
        """Whether a module, parameter or buffer was replaced, added or taken away, or written in place."""
        return [id(value) for value in self._hanging()] != self._ids or self._stamp() != self._stamps

    def _hanging(self) -> list[Any]:
        return [value for table in self._tables for value in table.values()]

    def _stamp(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in self._tensors]


def count_writes(flow: nn.Module) -> None:
    """Replace tensors that were made in inference mode, whose writes PyTorch does not count, by copies that count."""
    copies: dict[int, Tensor] = {}
    for module in flow.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is None or not value.is_inference():
                    continue
                if id(value) not in copies:  # what is shared stays shared
                    copy = value.clone()
                    if isinstance(value, nn.Parameter):
                        copy = nn.Parameter(copy, requires_grad=value.requires_grad)
                    copies[id(value)] = copy
                table[name] = copies[id(value)]  # type: ignore[assignment]
