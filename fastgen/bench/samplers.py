"""The samplers suite: every solver over the least network there is, so that what is timed is the sampler itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..diffusion.schedule import NoiseSchedule
from ..diffusion.solvers import SOLVERS
from ..engines import DiffusionEngine
from ..errors import FastgenError
from . import diffusion
from .contest import Contest

SHAPE = (3, 32, 32)
BATCHES = (1, 16)
STEPS = 20


def contests(
    device: torch.device,
    engine: DiffusionEngine | None,
    *,
    batches: Sequence[int],
    steps: int | None,
    against: Sequence[str],
    skipped: dict[str, str],
) -> Iterator[Contest]:
    """Every solver at each batch. engine: None for the least network. skipped: takes solvers that this model refuses,
    and why.
    """
    if engine is None:
        schedule = NoiseSchedule()
        options: dict[str, Any] = {"device": device, "dtype": torch.float32}
        engine = DiffusionEngine.from_module(diffusion.Scaled(), schedule, "epsilon", SHAPE, **options)
    for solver in SOLVERS:
        try:
            yield from diffusion.contests(
                engine,
                suite="samplers",
                name=solver,
                batches=batches or BATCHES,
                steps=steps or STEPS,
                against=against,
                solver=solver,
            )
        except FastgenError as error:  # made for other models: a continuous process, a learned variance
            skipped[f"solver {solver}"] = str(error)
