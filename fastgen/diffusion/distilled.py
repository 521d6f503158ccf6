"""Solvers for distilled models, which jump to the clean sample at once and add fresh noise.

`lcm` and `tcd` visit a few of the timesteps at which the model was distilled; `consistency` runs on every process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded
from ..errors import ConfigError
from .clipping import ClipOptions
from .consistency_model import ConsistencyModel
from .given import GivenTimesteps, given_timesteps
from .processes import AnyProcess
from .schedule import MAX_TIMESTEPS, NoiseSchedule
from .sigmas import SigmaOptions, sigma_points
from .table import X0, Table, TableBuilder, X, Z

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class TCDOptions(GivenTimesteps, ClipOptions):
    """Options of `tcd`: those of `ClipOptions` and `GivenTimesteps`, and

    original_inference_steps: how many timesteps the model was distilled at, T // original_inference_steps apart; the
        most steps there can be
    eta: gamma of the paper: how much of every step is fresh noise, from 0 (none, deterministic) to 1
    """

    original_inference_steps: int = bounded(1, MAX_TIMESTEPS, default=50)
    eta: float = bounded(0.0, 1.0, default=0.3)


@dataclass(frozen=True)
class LCMOptions(GivenTimesteps, ClipOptions):
    """Options of `lcm`: those of `ClipOptions` and `GivenTimesteps`, and

    original_inference_steps: how many timesteps the model was distilled at, T // original_inference_steps apart; the
        most steps there can be
    timestep_scaling: of t in the boundary condition; the larger, the less of x_t is in the answer
    """

    original_inference_steps: int = bounded(1, MAX_TIMESTEPS, default=50)
    timestep_scaling: float = bounded(0.0, 1e6, default=10.0)


def distilled_timesteps(num_train_timesteps: int, steps: int, original_inference_steps: int) -> list[int]:
    """`steps` of the timesteps k T // n - 1, k = 1 .. n, falling from T - 1, n = original_inference_steps.

    ConfigError if there are not so many.
    """
    if original_inference_steps > num_train_timesteps:
        raise ConfigError(
            f"at most num_train_timesteps = {num_train_timesteps}, got {original_inference_steps}",
            argument="original_inference_steps",
        )
    if steps > original_inference_steps:
        raise ConfigError(
            f"at most original_inference_steps = {original_inference_steps}, the timesteps the model was "
            f"distilled at, got {steps}",
            argument="steps",
        )
    apart = num_train_timesteps // original_inference_steps
    taken = np.floor(np.linspace(0, original_inference_steps, steps, endpoint=False))
    return [(original_inference_steps - int(i)) * apart - 1 for i in taken]


def _visited(schedule: NoiseSchedule, steps: int, options: LCMOptions | TCDOptions) -> list[int]:
    """Timesteps given, whether or not the model was distilled at them, as in diffusers; else some of those it was."""
    given = given_timesteps(options, schedule.num_train_timesteps, whole=True)
    if given is not None:
        return [int(t) for t in given][options.begin_index :]
    visited = distilled_timesteps(schedule.num_train_timesteps, steps, options.original_inference_steps)
    return visited[options.begin_index :]


def lcm(schedule: NoiseSchedule, steps: int, options: LCMOptions) -> Table:
    """Multistep consistency sampling, Luo et al. 2023, "Latent Consistency Models" (arXiv:2310.04378).

    f(x, t) = c_skip x + c_out x_0, then x' = alpha' f + sigma' z; f itself at the end. With s = timestep_scaling t and
    d = 1/2: c_skip = d^2 / (s^2 + d^2), c_out = s / sqrt(s^2 + d^2).
    """
    visited = _visited(schedule, steps, options)
    rows = TableBuilder("lcm", clip=options.clip, threshold=options.threshold)
    for t, s in zip(visited, [*visited[1:], -1], strict=True):
        scaled = t * options.timestep_scaling
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
        alpha, sigma = schedule.alpha_sigma(s)  # (1, 0) at the end
        rows.evaluate(
            schedule.point_at(t, *schedule.alpha_sigma(t)), alpha * (c_skip * X + c_out * X0) + sigma * Z
        )
    return rows.table()


def tcd(schedule: NoiseSchedule, steps: int, options: TCDOptions) -> Table:
    """Strategic stochastic sampling, Zheng et al. 2024, "Trajectory Consistency Distillation" (arXiv:2402.19159).

    To a timestep s = floor((1 - eta) t') by DDIM, then from there to the next t' by noise:
    x' = alpha' / alpha_s x_s + sqrt(1 - (alpha' / alpha_s)^2) z. The last step ends at t = 0, without noise.
    """
    visited = _visited(schedule, steps, options)
    rows = TableBuilder("tcd", clip=options.clip, threshold=options.threshold)
    for t, after in zip(visited, [*visited[1:], 0], strict=True):
        # In float32, as the authors' code has it: there a product that should be whole is.
        s = math.floor(np.float32(1.0 - options.eta) * np.float32(after))
        point = schedule.point_at(t, *schedule.alpha_sigma(t))
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        kept = schedule.alpha_sigma(after)[0] / alpha_s
        x = alpha_s * X0 + sigma_s * point.epsilon(clipped=options.clipped)
        rows.evaluate(point, kept * x + math.sqrt(max(1.0 - kept**2, 0.0)) * Z)
    return rows.table()


@dataclass(frozen=True)
class ConsistencyOptions(SigmaOptions):
    """Options of `consistency`: those of `SigmaOptions`, and

    clip_sample: on, as in diffusers' clip_denoised
    s_noise: standard deviation of the fresh noise
    """

    clip_sample: bool = True
    s_noise: float = bounded(0.0, 10.0, default=1.0)


def consistency(schedule: AnyProcess, steps: int, options: ConsistencyOptions) -> Table:
    """Multistep consistency sampling, Song et al. 2023, "Consistency Models" (arXiv:2303.01469), algorithm 1.

    A step goes to the clean sample, and from there to the next level by fresh noise:
    x' = alpha' x_0 + sqrt(sigma'^2 - sigma_min^2) z; the last step ends at x_0 itself.

    sigma_min is that of a `ConsistencyModel`, whose clean sample is its state at that level, and 0 for other processes,
    whose x_0 need not be a good jump.
    """
    points = sigma_points(schedule, steps, options)
    lowest = schedule.sigma_min if isinstance(schedule, ConsistencyModel) else 0.0
    rows = TableBuilder("consistency", clip=options.clip, threshold=options.threshold)
    for now, after in points.steps:
        std = math.sqrt(max(after.sigma**2 - lowest**2, 0.0))
        rows.evaluate(now, after.alpha * X0 + options.s_noise * std * Z)
    return rows.table(initial_scale=points.initial_scale)
