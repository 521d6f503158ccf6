"""In which order a run sees its samples, and the seeds of its random numbers: functions of the seed and the step, so
that a run goes on where it was, by any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .batch import Batch, Dataset
from .objective import Objective
from .settings import RunConfig


def batches(
    dataset: Dataset, objective: Objective, config: RunConfig, start: int, rows: range | None = None
) -> Iterator[Batch]:
    """Batches `start`..`config.steps` of one endless stream of shuffled epochs: the objective's inputs, on the CPU.

    rows: which samples of each batch, by default all.
    """
    own = slice(None) if rows is None else slice(rows.start, rows.stop)
    epoch, order = -1, torch.empty(0, dtype=torch.long, device="cpu")
    for step in range(start, config.steps):
        indices = []
        for position in range(step * config.batch_size, (step + 1) * config.batch_size):
            if position // len(dataset) != epoch:
                epoch = position // len(dataset)
                order = torch.randperm(len(dataset), generator=seeded(config.seed, -1 - epoch), device="cpu")
            indices.append(int(order[position % len(dataset)]))
        x, label, target = dataset.batch(indices[own])
        x, target = objective.inputs(x), None if target is None else objective.inputs(target)
        if config.flip:
            mirror = (
                torch.rand(
                    len(indices),
                    generator=seeded(config.seed, step, salt=1),
                    dtype=torch.float32,
                    device="cpu",
                )
                < 0.5
            )[own]
            for images in (x,) if target is None else (x, target):
                images[mirror] = images[mirror].flip(-1)
        yield Batch(x, label, target)


def mixed(seed: int, step: int, salt: int = 0) -> int:
    """A 63-bit seed from (seed, step, salt): splitmix64's finaliser, so that neighbours are unrelated."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + salt * 0xD6E8FEB86659FD93) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


def seeded(seed: int, step: int, salt: int = 0) -> torch.Generator:
    """A generator of the CPU, seeded by :func:`mixed`."""
    return torch.Generator().manual_seed(mixed(seed, step, salt))
