"""Multistep consistency sampling, Song et al. 2023, "Consistency Models" (arXiv:2303.01469)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import bounded
from .consistency_model import ConsistencyModel
from .processes import AnyProcess
from .sigmas import SigmaOptions, sigma_ladder
from .table import X0, Table, TableBuilder, Z


@dataclass(frozen=True)
class ConsistencyOptions(SigmaOptions):
    """Options of `consistency`: those of `SigmaOptions`, and

    clip_sample: on, as in diffusers' clip_denoised
    s_noise: standard deviation of the noise taken anew
    """

    clip_sample: bool = True
    s_noise: float = bounded(0.0, 10.0, default=1.0)


def consistency(schedule: AnyProcess, steps: int, options: ConsistencyOptions) -> Table:
    """Multistep consistency sampling (algorithm 1): to the clean sample, and back to the next level by new noise.

    x' = alpha' x_0 + sqrt(sigma'^2 - sigma_min^2) z; x_0 itself at the end. sigma_min is that of a `ConsistencyModel`,
    whose clean sample is its state there, and 0 for other processes, whose x_0 need not be a good jump.
    """
    ladder = sigma_ladder(schedule, steps, options)
    lowest = schedule.sigma_min if isinstance(schedule, ConsistencyModel) else 0.0
    rows = TableBuilder("consistency", clip=options.clip, threshold=options.threshold)
    for now, after in zip(ladder.points, ladder.knots[1:], strict=True):
        std = math.sqrt(max(after.sigma**2 - lowest**2, 0.0))
        rows.evaluate(now, after.alpha * X0 + options.s_noise * std * Z)
    return rows.table(initial_scale=ladder.initial_scale)
