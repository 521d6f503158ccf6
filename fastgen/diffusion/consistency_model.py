"""The process of consistency models, Song et al. 2023, "Consistency Models" (arXiv:2303.01469)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .continuous import ContinuousProcess
from .points import Point


@dataclass(frozen=True)
class ConsistencyModel(ContinuousProcess):
    """x = x_0 + sigma epsilon, and a network F in a function that leaves x alone at sigma_min (appendix C):

        f(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
        c_skip = d^2 / ((sigma - sigma_min)^2 + d^2)        c_out = (sigma - sigma_min) d / sqrt(sigma^2 + d^2)
        c_in = 1 / sqrt(sigma^2 + d^2)                      c_noise = 250 log(sigma)          d = sigma_data

    Names and defaults are those of diffusers' CMStochasticIterativeScheduler.

    num_train_timesteps: how many levels the model was trained at, even in sigma^(1/rho) from sigma_max to sigma_min; n
        steps visit every num_train_timesteps // n-th of them from sigma_max
    prediction_type: consistency, what is said above
    """

    name: ClassVar[str] = "consistency"

    num_train_timesteps: int = bounded(2, 100_000, default=40)
    sigma_min: float = bounded(1e-6, 1e3, default=0.002)
    sigma_max: float = bounded(1e-5, 1e6, default=80.0)
    sigma_data: float = bounded(1e-3, 1e3, default=0.5)
    rho: float = bounded(0.1, 100.0, default=7.0)
    prediction_type: str = one_of("consistency", default="consistency")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(
                f"{self.sigma_min} must be below sigma_max, {self.sigma_max}", argument="sigma_min"
            )

    @property
    def steps_limit(self) -> int:
        """Most steps of a solver: every level."""
        return self.num_train_timesteps

    def point(self, level: float, time: float | None = None) -> Point:
        """The point at sigma = `level` >= sigma_min; told `time`, by default c_noise."""
        data, above = self.sigma_data, level - self.sigma_min
        c_skip = data**2 / (above**2 + data**2)
        c_out = above * data / math.sqrt(level**2 + data**2)
        return Point(
            alpha=1.0,
            sigma=level,
            scale=1.0,
            time=250.0 * math.log(level) if time is None else time,
            x0=(c_skip, c_out),
            noise=((1.0 - c_skip) / level, -c_out / level),
            input_scale=1.0 / math.sqrt(level**2 + data**2),
        )

    def natural(self, count: int, *, finite: bool = False, spacing: str = "linspace") -> np.ndarray:
        """`count` of the levels trained at. spacing: linspace only."""
        if spacing != "linspace":
            raise ConfigError(
                f"{spacing} has no meaning for the process consistency; leave it at linspace",
                argument="timestep_spacing",
            )
        if count > self.num_train_timesteps:
            raise ConfigError(
                f"at most {self.num_train_timesteps}, the levels the model was trained at, got {count}",
                argument="steps",
            )
        places = np.arange(count) * (self.num_train_timesteps // count) / (self.num_train_timesteps - 1)
        high, low = self.sigma_max ** (1.0 / self.rho), self.sigma_min ** (1.0 / self.rho)
        return (high + places * (low - high)) ** self.rho
