"""Whether a module does what its class says, and nothing else."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as every

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")  # of torch.nn.modules.module


def hooked(module: nn.Module) -> bool:
    """Whether its call does more than its class's forward: hooks, its own or global, or a forward of its own."""
    hooks = [getattr(module, name) for name in HOOKS] + [getattr(every, name) for name in GLOBAL_HOOKS]
    return any(hooks) or "forward" in vars(module)
