"""DDIM, Song et al. 2021, "Denoising Diffusion Implicit Models" (arXiv:2010.02502)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import bounded, one_of, short_text
from ..errors import ConfigError
from .clipping import ClipOptions
from .ddpm import visited_timesteps
from .given import GivenTimesteps
from .schedule import NoiseSchedule
from .table import X0, Table, TableBuilder, Z
from .timesteps import SPACINGS

ROUNDING = 1e-12  # how far below 0 a variance may come by cancellation


@dataclass(frozen=True)
class DDIMOptions(GivenTimesteps, ClipOptions):
    """Options of `ddim`.

    eta: 0 is deterministic, 1 adds DDPM's noise (eq. 16)
    set_alpha_to_one: end at the clean sample (alphas_cumprod = 1) rather than at alphas_cumprod[0]
    use_clipped_model_output: derive the noise estimate from the clipped x_0, so that the two belong together, as in
        the authors' code. Else noise that a clip has taken from x_0 stays in the state, and more steps leave more of it
    constant_stride: step from t to t - T // steps, as diffusers does, rather than to the next visited
        timestep. The two agree for leading spacing, and for trailing where `steps` divides T. Elsewhere the
        constant stride falls short of the timesteps visited and leaves noise in the sample
    clip_sample and the like: see `ClipOptions`; timesteps: see `GivenTimesteps`
    timestep_spacing, steps_offset: see `fastgen.diffusion.timesteps`
    timestep_respacing: guided-diffusion's rule instead, "250", "ddim25" or "10,15,20"; `steps` must be its number
    """

    diffusers: ClassVar[Mapping[str, Any]] = {
        "timestep_spacing": "leading",
        "use_clipped_model_output": False,
        "constant_stride": True,
    }

    timestep_spacing: str = one_of(*SPACINGS, default="trailing")
    steps_offset: int = bounded(0, 1000, default=0)
    clip_sample: bool = True
    eta: float = bounded(0.0, 1e3, default=0.0)
    set_alpha_to_one: bool = True
    use_clipped_model_output: bool = True
    constant_stride: bool = False
    timestep_respacing: str | None = short_text(1000, default=None)


def ddim(schedule: NoiseSchedule, steps: int, options: DDIMOptions) -> Table:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) epsilon + std z (eq. 12), std from eq. 16.

    Raises ConfigError where eta is so large that std exceeds sigma_s.
    """
    visited = visited_timesteps(schedule, steps, options)
    following = [*visited[1:], -1]
    if options.constant_stride and options.timestep_respacing is None and options.timesteps is None:
        following = list(visited - schedule.num_train_timesteps // steps)
    rows = TableBuilder("ddim", clip=options.clip, threshold=options.threshold)
    end = -1 if options.set_alpha_to_one else 0
    for t, s in zip(visited, following, strict=True):
        bar_t, bar_s = schedule.alpha_bar(t), schedule.alpha_bar(s if s >= 0 else end)
        variance = (1.0 - bar_s) / (1.0 - bar_t) * (1.0 - bar_t / bar_s)
        std = options.eta * math.sqrt(variance)
        rest = 1.0 - bar_s - std**2
        if rest < -ROUNDING:
            raise ConfigError(
                f"{options.eta} asks for noise of standard deviation {std:.4g} at t = {t}, where only "
                f"{math.sqrt(1.0 - bar_s):.4g} fits; use a smaller eta",
                argument="eta",
            )
        point = schedule.point_at(t, *schedule.alpha_sigma(t))
        epsilon = point.epsilon(clipped=options.use_clipped_model_output and options.clipped)
        x = math.sqrt(bar_s) * X0 + math.sqrt(max(rest, 0.0)) * epsilon + std * Z
        rows.evaluate(point, x)
    return rows.table()
