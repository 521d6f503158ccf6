"""An AdamW for each group of networks: which parameters it has, its learning rate, a step of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .objective import Objective
from .settings import RunConfig
from .state import MAX_GROUPS


def optimizers(
    objective: Objective, networks: nn.ModuleDict, config: RunConfig
) -> dict[str, torch.optim.AdamW]:
    """An AdamW for each group that is trained. Raises ConfigError where groups do not split up all parameters."""
    made = {}
    free = {parameter: name for name, parameter in networks.named_parameters()}
    for name, group in objective.groups(networks).items():
        parameters = list(dict.fromkeys(p for module in group.modules for p in module.parameters()))
        if not parameters or not all(p in free for p in parameters):
            raise ConfigError(
                f"{name} has no parameters, or one of another group or of no network", argument="groups"
            )
        for parameter in parameters:
            del free[parameter]
        if group.fixed:
            for parameter in parameters:
                parameter.requires_grad_(False)
            continue
        made[name] = torch.optim.AdamW(
            [{"params": parameters, "cycles": group.cycles}],
            lr=config.lr if group.lr is None else group.lr,
            weight_decay=config.weight_decay if group.weight_decay is None else group.weight_decay,
            betas=group.betas,
            fused=True,
        )
    if free or len(made) > MAX_GROUPS:
        raise ConfigError(
            f"{next(iter(free.values()))} belongs to none" if free else f"at most {MAX_GROUPS}",
            argument="groups",
        )
    return made


def backward(optimizer: torch.optim.AdamW, loss: Tensor) -> None:
    """Add a loss' gradients to those of a group's parameters.

    A generator's loss runs through the discriminator. `inputs` keeps gradients off the parameters of other groups, so
    that nothing is left on them for their next update, and autograd does not even compute them: that saves what
    freezing these parameters would save in the backward pass, and an objective need not freeze and thaw them.
    """
    loss.backward(inputs=_parameters(optimizer))


def gradients(optimizer: torch.optim.AdamW) -> list[Tensor]:
    """Those of a group's parameters that have one."""
    return [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]


def update(optimizer: torch.optim.AdamW, step: int, config: RunConfig) -> float:
    """A step of a group's optimiser by the gradients that are there, which it clears. Returns its learning rate."""
    if config.grad_clip:
        nn.utils.clip_grad_norm_(_parameters(optimizer), config.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * rate(step, config, group["cycles"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(optimizer.param_groups[0]["lr"])


def _parameters(optimizer: torch.optim.AdamW) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def rate(step: int, config: RunConfig, cycles: int = 1) -> float:
    """A factor of the learning rate: linear warm-up, then a cosine down to zero, or, of decay "linear", one until half
    of the run is done and a straight line to zero from there (Isola et al. 2017's code). All of that happens in each of
    `cycles` equal parts of the run.
    """
    cycle = step * cycles // config.steps
    first, end = (-(-k * config.steps // cycles) for k in (cycle, cycle + 1))
    step, steps = step - first, end - first
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(steps - config.warmup, 1)
    if config.decay == "linear":
        return min(1.0, 2 * (1 - done))
    return 0.5 * (1 + math.cos(math.pi * done))
