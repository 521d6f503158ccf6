"""Ancestral sampling: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..config import bounded, one_of, short_text
from ..errors import ConfigError
from .clipping import ClipOptions
from .given import GivenTimesteps, given_timesteps
from .schedule import NoiseSchedule
from .table import LEARNED_NONE, LEARNED_RANGE, LEARNED_VARIANCE, X0, Table, TableBuilder, X, Z
from .timesteps import SPACINGS, timesteps

VARIANCE_TYPES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)
LEARNED = {"learned": LEARNED_VARIANCE, "learned_range": LEARNED_RANGE}


@dataclass(frozen=True)
class DDPMOptions(GivenTimesteps, ClipOptions):
    """Options of `ddpm`.

    variance_type: the variance of a step. fixed_small: beta~_t of eq. 7; fixed_large: beta_t; ``..._log`` are
        the same numbers (diffusers computes them through a logarithm); learned: V, the second half of the
        network's channels, is the variance itself; learned_range: V in [-1, 1] interpolates the logarithms of
        the two (Nichol & Dhariwal 2021, eq. 15)
    clip_sample and the like: see `ClipOptions`; timesteps: see `GivenTimesteps`
    timestep_spacing, steps_offset: see `fastgen.diffusion.timesteps`
    timestep_respacing: guided-diffusion's rule instead, "250", "ddim25" or "10,15,20"; `steps` must be its number
    """

    diffusers: ClassVar[Mapping[str, Any]] = {"timestep_spacing": "leading"}

    timestep_spacing: str = one_of(*SPACINGS, default="trailing")
    steps_offset: int = bounded(0, 1000, default=0)
    clip_sample: bool = True
    variance_type: str = one_of(*VARIANCE_TYPES, default="fixed_small")
    timestep_respacing: str | None = short_text(1000, default=None)


def visited_timesteps(schedule: NoiseSchedule, steps: int, options: Any) -> np.ndarray:
    """int64 [steps]: given, by guided-diffusion's rule, or by the spacing. options: `DDPMOptions` or `DDIMOptions`.

    Without the first begin_index of them.
    """
    return _visited(schedule, steps, options)[options.begin_index :]


def _visited(schedule: NoiseSchedule, steps: int, options: Any) -> np.ndarray:
    given = given_timesteps(options, schedule.num_train_timesteps, whole=True)
    if given is None:
        return timesteps(
            schedule.num_train_timesteps,
            steps,
            options.timestep_spacing,
            options.steps_offset,
            respacing=options.timestep_respacing,
        )
    if options.timestep_respacing is not None:
        raise ConfigError("at most one of them can be given", argument="timesteps, timestep_respacing")
    return given


def ddpm(schedule: NoiseSchedule, steps: int, options: DDPMOptions) -> Table:
    """Algorithm 2: x_s = mu(x_t, x_0) + std z from t to the next visited s (eq. 6, 7), no noise at the end.

    diffusers deviates from this in two places: where its last t is above 0 (trailing spacing, an offset) it
    adds noise to the finished sample; and its fixed_large_log is NaN, the root of a negative logarithm.
    """
    visited = visited_timesteps(schedule, steps, options)
    rows = TableBuilder("ddpm", clip=options.clip, threshold=options.threshold)
    learned = LEARNED.get(options.variance_type, LEARNED_NONE)
    for t, s in zip(visited, [*visited[1:], -1], strict=True):
        bar_t, bar_s = schedule.alpha_bar(t), schedule.alpha_bar(s)
        alpha = bar_t / bar_s  # the product of 1 - beta over the steps from s to t
        beta = 1.0 - alpha
        kept = (1.0 - bar_s) / (1.0 - bar_t)
        mean = math.sqrt(bar_s) * beta / (1.0 - bar_t) * X0 + math.sqrt(alpha) * kept * X
        point = schedule.point_at(t, *schedule.alpha_sigma(t))
        if s == -1:
            rows.evaluate(point, mean)
            continue
        small = kept * beta
        if learned:
            rows.evaluate(point, mean + Z, log2_std=(0.5 * math.log2(small), 0.5 * math.log2(beta)))
        else:
            variance = beta if options.variance_type.startswith("fixed_large") else small
            rows.evaluate(point, mean + math.sqrt(variance) * Z)
    return rows.table(learned=learned)
