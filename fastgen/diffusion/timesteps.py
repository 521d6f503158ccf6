"""Which of the T training timesteps a solver visits (Lin et al. 2023, table 2)."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from .respacing import respaced

SPACINGS = ("linspace", "leading", "trailing")


def timesteps(
    num_train_timesteps: int,
    steps: int,
    spacing: str = "leading",
    steps_offset: int = 0,
    *,
    skip_end: bool = False,
    whole: bool = True,
    respacing: str | None = None,
) -> np.ndarray:
    """The timesteps of `steps` network evaluations: int64 [steps], strictly falling, within 0 .. T - 1.

    spacing: linspace spreads them from T - 1 to 0; leading takes multiples of T // steps from 0, and so
        starts below T - 1; trailing takes multiples of T / steps back from T - 1
    steps_offset: added to leading timesteps (1 for Stable Diffusion); the other spacings ignore it, as
        diffusers
    skip_end: lay steps + 1 knots and evaluate all but the last. DPM-Solver's papers count knots: the state
        reaches the last one without evaluating the network there. DDPM and DDIM evaluate at every knot. For
        trailing spacing the two rules agree.
    whole: round linspace to whole timesteps; False leaves them where they fall and returns float64

    respacing: guided-diffusion's `timestep_respacing` in place of spacing and steps_offset; see `respaced`

    Raises ConfigError where the rule leaves the range or visits a timestep twice: diffusers fails or returns
    NaN there. In one place the result differs from diffusers': where `steps` does not divide T, its trailing
    spacing may return one timestep too many, -1, by rounding of ``np.arange``; it is dropped here.
    """
    if spacing not in SPACINGS:
        raise ConfigError(
            f"expected one of {', '.join(SPACINGS)}, got {spacing!r}", argument="timestep_spacing"
        )
    if respacing is not None:
        visited = respaced(num_train_timesteps, respacing)
        if len(visited) != steps:
            raise ConfigError(
                f"timestep_respacing {respacing} visits {len(visited)} timesteps, got {steps}",
                argument="steps",
            )
        return visited
    knots = steps + 1 if skip_end else steps
    if spacing == "linspace":
        positions = np.linspace(0, num_train_timesteps - 1, knots)[::-1][:steps]
    elif spacing == "leading":
        positions = np.arange(knots, dtype=np.float64)[::-1][:steps]
        positions = positions * (num_train_timesteps // knots) + steps_offset
    else:
        # np.arange and not a product: halves must round to the side that they round to in diffusers.
        positions = np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / steps))[:steps] - 1
    visited = positions.round().astype(np.int64) if whole else positions.astype(np.float64)
    if visited[0] > num_train_timesteps - 1:
        raise ConfigError(
            f"{steps_offset} moves the first of {steps} timesteps to {visited[0]:g}, beyond "
            f"{num_train_timesteps - 1}; use a smaller steps_offset or fewer steps",
            argument="steps_offset",
        )
    if np.any(np.diff(visited) >= 0):
        raise ConfigError(
            f"{steps} steps with timestep_spacing={spacing} visit a timestep twice "
            f"(num_train_timesteps={num_train_timesteps}); use fewer steps, or trailing",
            argument="steps",
        )
    return visited
