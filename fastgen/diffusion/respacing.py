"""guided-diffusion's rule for visiting fewer timesteps: its option `timestep_respacing` (Nichol & Dhariwal 2021)."""

from __future__ import annotations

import re

import numpy as np

from ..errors import ConfigError

MAX_SECTIONS = 1000


def respaced(num_train_timesteps: int, respacing: str) -> np.ndarray:
    """The timesteps that `respacing` says: int64, strictly falling, within 0 .. T - 1.

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
