"""What the golden tests and the table of docs/solvers.md compare, and how: our tables against another way to compute.

A solver's `Golden` names the options to try and the other way: diffusers by default. `measure` tries them all.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.diffusion import NoiseSchedule, run, solver_table

from .diffusers_oracle import basis_run, deviation, diffusers_run, random_network, table_matrix

TOLERANCE = 1e-12
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("linspace", "leading", "trailing")
STEPS = (1, 2, 7, 10, 50)
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
Options = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Deviations of one solver in float64: of whole runs as matrices, and of trajectories with x_0 clipped.

    against: diffusers, or where the formulas are written that stand in for it.
    """

    matrices: list[float]
    paths: list[float]
    against: str = "diffusers"


@dataclass(frozen=True)
class Golden:
    """How a solver is compared.

    options: for whole runs as matrices. paths: for trajectories, to which clipping is added. predictions, spacings:
    those that the other side knows; no spacings: it has no such option. rescales: it knows zero terminal SNR.
    lost: (schedule, steps, options) -> how many times its rounding the other side loses by cancellation.
    other: what runs the other side, with the arguments of `diffusers_run`; against: its name.
    """

    options: list[Options]
    paths: list[Options]
    predictions: tuple[str, ...] = PREDICTIONS
    spacings: tuple[str, ...] = SPACINGS
    rescales: bool = True
    lost: Callable[..., float] | None = None
    other: Callable[..., Tensor] = diffusers_run
    against: str = "diffusers"

    def chosen(self, options: list[Options]) -> Iterator[Options]:
        """`options` with every spacing."""
        for o in options:
            for spacing in self.spacings or (None,):
                chosen = {} if spacing is None else {"timestep_spacing": spacing}
                yield {"as_diffusers": True} | chosen | o

    def tolerance(self, schedule: NoiseSchedule, steps: int, options: Options) -> float:
        """1e-12, but where the other side cannot be so exact."""
        lost = 0.0 if self.lost is None else self.lost(schedule, steps, options)
        return max(TOLERANCE, 2 * np.finfo(float).eps * lost)


def product(**values: tuple[Any, ...]) -> list[Options]:
    """All combinations."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def matrix_deviation(
    golden: Golden, name: str, schedule: NoiseSchedule, steps: int, options: Options
) -> float:
    """Of a whole run, driven with unit vectors."""
    table = solver_table(name, schedule, steps, **options)
    other = functools.partial(golden.other, name, schedule, steps, **options)
    return deviation(table_matrix(table), basis_run(other, len(table)))


def trajectories(
    golden: Golden, name: str, schedule: NoiseSchedule, steps: int, options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of our run and of the other one, through a random non-linear network with the same noise."""
    table = solver_table(name, schedule, steps, **options)
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(table), 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise[-1] = 0  # diffusers adds noise to finished samples
    network = random_network(1, 3, options.get("variance_type"))
    ours = run(table, network, x, noise)
    theirs = golden.other(name, schedule, steps, network, x, list(noise), **options)
    return ours.numpy(), theirs.numpy()


def measure(name: str, golden: Golden, steps: tuple[int, ...] = STEPS) -> Measured:
    """Every prediction type, spacing, set of options and number of steps, and seven steps on the other schedules.

    Without those where the other side cannot be so exact.
    """
    runs = [*_processes(golden, "linear", steps), *_processes(golden, "cosine", (7,))]
    matrices = [
        matrix_deviation(golden, name, process, count, options)
        for process, count in [*runs, *_processes(golden, "scaled", (7,))]
        for options in golden.chosen(golden.options)
        if golden.tolerance(process, count, options) == TOLERANCE
    ]
    clipped = [{**options, "clip_sample": True} for options in golden.paths]
    paths = [
        deviation(*trajectories(golden, name, process, count, options))
        for process, count in _processes(golden, "scaled", steps)
        for options in golden.chosen(clipped)
        if golden.tolerance(process, count, options) == TOLERANCE
    ]
    return Measured(matrices, paths, golden.against)


def _processes(golden: Golden, name: str, steps: tuple[int, ...]) -> list[tuple[NoiseSchedule, int]]:
    kinds = (NoiseSchedule(prediction_type=p, **SCHEDULES[name]) for p in golden.predictions)
    return list(itertools.product(kinds, steps))
