"""A batch in equal shares: one for each process, and of a process' own one for each gradient that is accumulated.

The mean of the gradients of the shares is the gradient of the whole batch, to rounding, where a loss is a mean of what
each sample gives and each sample's random numbers are its own (``Step.drawn``). What is otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..errors import ConfigError
from ..models.translate.pool import ImagePool
from .batch import Batch
from .distributed import Processes
from .objective import Objective, Share, Step
from .settings import RunConfig

UNUSED = 0  # seed of a generator that nothing may be drawn from


def check_shares(
    objective: Objective, networks: nn.ModuleDict, config: RunConfig, processes: Processes
) -> None:
    """Whether the batches of a run can be shared as it asks. Raises ConfigError."""
    shares = processes.size * config.accumulate
    if shares == 1:
        return
    if config.batch_size % shares:
        raise ConfigError(
            f"expected a multiple of {shares}, {processes.size} processes times {config.accumulate} accumulated "
            f"gradients, got {config.batch_size}",
            argument="batch_size",
        )
    why = str(getattr(objective, "whole_batch", ""))
    for name, module in networks.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            why = why or f"{name} normalises by the statistics of a whole batch"
        elif isinstance(module, ImagePool):
            why = why or f"{name} keeps images of whole batches"
    if why:
        raise ConfigError(f"{why}: train with one process, and without --accumulate", argument="batch_size")


def shared(
    batch: Batch,
    config: RunConfig,
    number: int,
    processes: Processes,
    generator: Callable[[], torch.Generator],
) -> list[Step]:
    """Step `number` as the shares of this process; `batch`: its own samples, on the device.

    generator: makes one that is seeded for the step.
    """
    if processes.size * config.accumulate == 1:
        return [Step(batch.x, batch.label, generator(), config, batch.target, number)]
    own, size = processes.rows(config.batch_size), config.batch_size // processes.size // config.accumulate
    steps = []
    for i in range(config.accumulate):
        here = slice(i * size, (i + 1) * size)
        share = Share(slice(own.start + here.start, own.start + here.stop), config.batch_size, generator())
        label = None if batch.label is None else batch.label[here]
        target = None if batch.target is None else batch.target[here]
        unused = torch.Generator().manual_seed(UNUSED)
        steps.append(Step(batch.x[here], label, unused, config, target, number, share))
    return steps


def check_drawn(steps: Sequence[Step]) -> None:
    """Whether the objective has drawn for shares of a batch as for the whole. Raises ConfigError."""
    fresh = torch.Generator().manual_seed(UNUSED).get_state()
    if any(step.share is not None and not torch.equal(step.generator.get_state(), fresh) for step in steps):
        raise ConfigError(
            "the objective draws for a whole batch at once: train with one process, and without --accumulate",
            argument="batch_size",
        )
