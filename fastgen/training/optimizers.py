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
            parameters,
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


def update(optimizer: torch.optim.AdamW, loss: Tensor, factor: float, grad_clip: float) -> None:
    """One step of a group's optimiser, at `factor` times its learning rate.

    A generator's loss runs through the discriminator. `inputs` keeps gradients off the parameters of other groups, so
    that nothing is left on them for their next update, and autograd does not even compute them: that saves what
    freezing these parameters would save in the backward pass, and an objective need not freeze and thaw them.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loss.backward(inputs=parameters)
    if grad_clip:
        nn.utils.clip_grad_norm_(parameters, grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def rate(step: int, config: RunConfig) -> float:
    """A factor of the learning rate: linear warm-up, then a cosine down to zero, or, of decay "linear", one until half
    of the run is done and a straight line to zero from there (Isola et al. 2017's code).
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    if config.decay == "linear":
        return min(1.0, 2 * (1 - done))
    return 0.5 * (1 + math.cos(math.pi * done))
