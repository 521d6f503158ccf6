"""Which of the T training timesteps a solver visits (Lin et al. 2023, table 2)."""

from __future__ import annotations

import re

import numpy as np

from ..errors import ConfigError

SPACINGS = ("linspace", "leading", "trailing")
STABLE = "stable"  # of solvers that declare it: levels at which their steps are stable
MAX_SECTIONS = 1000  # of a timestep_respacing


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
    skip_end: spread steps + 1 step points and evaluate at all but the last. DPM-Solver's papers count step points: the
        state reaches the last one without an evaluation of the network. DDPM and DDIM evaluate at every point. For
        trailing spacing the two rules agree
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
    count = steps + 1 if skip_end else steps
    if spacing == "linspace":
        positions = np.linspace(0, num_train_timesteps - 1, count)[::-1][:steps]
    elif spacing == "leading":
        positions = np.arange(count, dtype=np.float64)[::-1][:steps]
        positions = positions * (num_train_timesteps // count) + steps_offset
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


def respaced(num_train_timesteps: int, respacing: str) -> np.ndarray:
    """The timesteps that guided-diffusion's `timestep_respacing` (Nichol & Dhariwal 2021) says.

    Returns int64, strictly falling, within 0 .. T - 1.

    respacing: "250" spreads 250 timesteps over all T, both ends included; "10,15,20" spreads 10 over the first third
        of the timesteps, 15 over the second, 20 over the last; "ddim25" takes 25 by a constant stride from 0, where
        there is such a stride

    Raises ConfigError for anything else, and for more timesteps than there are.
    """
    if match := re.fullmatch(r"ddim([0-9]{1,6})", respacing):
        wanted = int(match[1])
        for stride in range(1, num_train_timesteps + 1):
            if len(range(0, num_train_timesteps, stride)) == wanted:
                return np.arange(0, num_train_timesteps, stride, dtype=np.int64)[::-1].copy()
        raise ConfigError(
            f"no constant stride through {num_train_timesteps} timesteps visits {wanted} of them; "
            f"take {wanted} without ddim, or another number",
            argument="timestep_respacing",
        )
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", respacing) or respacing.count(",") >= MAX_SECTIONS:
        raise ConfigError(
            f"expected numbers of timesteps like 250, 10,15,20 or ddim25, got {respacing[:60]!r}",
            argument="timestep_respacing",
        )
    counts = [int(count) for count in respacing.split(",")]
    size, longer = divmod(num_train_timesteps, len(counts))
    taken: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        length = size + (1 if i < longer else 0)
        if not 1 <= count <= length:
            raise ConfigError(
                f"section {i + 1} of {len(counts)} has {length} timesteps, expected 1 to {length} "
                f"of them, got {count}",
                argument="timestep_respacing",
            )
        apart, position = (length - 1) / max(count - 1, 1), 0.0
        for _ in range(count):  # adding up, as in the original: halves then round to the same side
            taken.append(start + round(position))
            position += apart
        start += length
    return np.array(sorted(set(taken), reverse=True), dtype=np.int64)
