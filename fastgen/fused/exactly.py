"""Whether a module does what its class says, and nothing else."""

from __future__ import annotations

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether its call does more than its class's forward: hooks, or a forward of the instance's own."""
    return any(getattr(module, name) for name in HOOKS) or "forward" in vars(module)
