"""The points of solvers that count in lambda = log(alpha / sigma): DPM-Solver and its kin, with their papers' knots.

On a :class:`NoiseSchedule` the rules are those of diffusers' DPM-Solver: timesteps are whole, and the state reaches a
last knot at which the network is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from .points import Ladder, Point, clean
from .schedule import NoiseSchedule
from .timesteps import SPACINGS, timesteps

TERMINAL_ALPHA_BAR = 2.0**-24  # stands for alphas_cumprod = 0, so that the first log-SNR is finite


@dataclass(frozen=True)
class LambdaOptions:
    """Which noise levels are visited; names and defaults are diffusers', but for the clipping, which it lacks here.

    final_sigmas_type: zero ends at the clean sample, sigma_min at t = 0
    clip_sample, clip_sample_range: clip the estimate of x_0 to +- the range
    timestep_spacing, steps_offset: see `fastgen.diffusion.timesteps`
    """

    timestep_spacing: str = one_of(*SPACINGS, default="linspace")
    steps_offset: int = bounded(0, 1000, default=0)
    clip_sample: bool = False
    clip_sample_range: float = bounded(1e-6, 1e6, default=1.0)
    final_sigmas_type: str = one_of("zero", "sigma_min", default="zero")

    @property
    def clip(self) -> float:
        """Bound of |x_0|, inf = none."""
        return self.clip_sample_range if self.clip_sample else math.inf


def lambda_ladder(schedule: NoiseSchedule, steps: int, options: LambdaOptions) -> Ladder:
    """The points of `steps` steps.

    Where alphas_cumprod is 0 (zero terminal SNR) 2^-24 stands for it, as in diffusers, and less where steps are so
    many that the next visited value is smaller still (diffusers goes backwards there).
    """
    visited = timesteps(
        schedule.num_train_timesteps, steps, options.timestep_spacing, options.steps_offset, skip_end=True
    )
    to_zero = options.final_sigmas_type == "zero"
    kept = np.append(schedule.alphas_cumprod[visited], 1.0 if to_zero else schedule.alphas_cumprod[0])
    if kept[0] == 0.0:  # the stand-in must stay below the next knot, or the first step would go backwards
        kept[0] = min(TERMINAL_ALPHA_BAR, kept[1] / 2)
    pairs = [(math.sqrt(bar), math.sqrt(1.0 - bar)) for bar in kept]
    points = tuple(schedule.point_at(float(t), *pair) for t, pair in zip(visited, pairs, strict=False))
    alpha, sigma = pairs[-1]
    return Ladder(points, clean() if to_zero else Point(alpha, sigma, scale=alpha))
