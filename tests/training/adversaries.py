"""A loop that trains a generator against a discriminator on what a function draws, without files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.training.gan import Adversarial, GANConfig
from fastgen.training.loop import _generator
from fastgen.training.objective import Step
from fastgen.training.optimizers import backward, optimizers, update
from fastgen.training.settings import RunConfig

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor | None]]  # a batch, and its labels


def train(
    networks: nn.ModuleDict,
    config: dict[str, Any],
    lr: float,
    steps: int,
    draw: Draw,
    *,
    decay: float,
    seed: int = 0,
) -> Iterator[tuple[int, nn.Module]]:
    """Yields (steps done, the generator of averaged weights in evaluation mode) ten times.

    config: fields of ``GANConfig``. The learning rate is constant for half of the steps, then falls linearly to 0.
    """
    average = copy.deepcopy(networks["generator"]).eval().requires_grad_(False)
    objective = Adversarial(GANConfig(**config), lr)
    run = RunConfig(steps=steps, precision="fp32", lr=lr, warmup=0, decay="linear", grad_clip=0.0)
    made = optimizers(objective, networks, run)
    for number in range(steps):
        random = _generator(seed, number, salt=3)
        step = Step(*draw(random), random, run)
        for name, loss in objective.losses(networks, step):
            backward(made[name], loss)
            update(made[name], number, run)
        with torch.no_grad():
            now = networks["generator"].state_dict()
            for name, mean in average.state_dict().items():
                if mean.is_floating_point():  # weights, and statistics of batch norms
                    mean.lerp_(now[name], 1 - decay)
        if (number + 1) % (steps // 10) == 0:
            yield number + 1, average
