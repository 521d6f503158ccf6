"""The samplers suite: every solver over the least network there is, so that what is timed is the sampler itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.consistency_model import ConsistencyModel
from ..diffusion.processes import AnyProcess
from ..diffusion.schedule import NoiseSchedule
from ..diffusion.sde import SDE, VPSDE
from ..diffusion.solvers import SOLVERS
from ..engines import DiffusionEngine
from . import diffusion
from .contest import Contest

SHAPE = (3, 32, 32)
BATCHES = (1, 16)
STEPS = 20


class Scaled(nn.Module):
    """The least network there is, one operation: what a sampler costs beside it is the sampler's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float32, device="cpu"), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return x * self.weight


def process(solver: str) -> AnyProcess:
    """What the least network stands for with a solver: DDPM's schedule, where the solver is not made for another."""
    if SOLVERS[solver].sde:
        return VPSDE(beta_max=3.0)  # Song's corrector takes more steps than beta_max
    return ConsistencyModel() if solver == "consistency" else NoiseSchedule()


def least(device: torch.device, solver: str) -> DiffusionEngine:
    """An engine around the least network."""
    options: dict[str, Any] = {"device": device, "dtype": torch.float32}
    on = process(solver)
    return DiffusionEngine.from_module(
        Scaled(), on, on.prediction_type, SHAPE, value_range=(-1, 1), **options
    )


def unfit(solver: str, engine: DiffusionEngine) -> str:
    """Why `solver` cannot run on the process that a model was trained for, or ""."""
    on = engine.settings.noise_schedule
    made = SOLVERS[solver]
    if made.sde and not isinstance(on, SDE):
        return "it solves SDEs, and this model's process is none"
    if made.discrete and not isinstance(on, NoiseSchedule):
        return "it steps between timesteps, and this model's process has none"
    return ""


def contests(
    device: torch.device, solver: str, engine: DiffusionEngine | None = None, **how: Any
) -> Iterator[Contest]:
    """One solver over `engine`, by default over the least network. how: arguments of `diffusion.contests`."""
    how = {**how, "batches": how["batches"] or BATCHES, "steps": how["steps"] or STEPS}
    return diffusion.contests(
        engine or least(device, solver), suite="samplers", name=solver, solver=solver, **how
    )
