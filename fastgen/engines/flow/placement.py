"""Where and in which types a flow's weights lie in an engine."""

from __future__ import annotations

from typing import Any

import torch

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
