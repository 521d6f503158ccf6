"""The process and preconditioning of Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative
Models" (arXiv:2206.00364), with its parameters' names and defaults verbatim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .continuous import ContinuousProcess, geometric
from .points import Pair, Point


@dataclass(frozen=True)
class EDM(ContinuousProcess):
    """x = x_0 + sigma epsilon, and a network F whose input and output are scaled to unit variance (table 1):

        D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)                              (eq. 7)
        c_skip = d^2 / (sigma^2 + d^2)        c_out = sigma d / sqrt(sigma^2 + d^2)
        c_in = 1 / sqrt(sigma^2 + d^2)        c_noise = log(sigma) / 4                 d = sigma_data

    sigma_min, sigma_max, rho: levels even in sigma^(1/rho) between the two (eq. 5)
    sigma_schedule: karras is eq. 5; exponential is even in log(sigma)
    sigma_data: standard deviation of the data
    prediction_type: edm, the network is F. v_prediction, it is -F. (diffusers' EDM schedulers call the first epsilon.)
        sample, it is the denoiser D itself, given x and sigma, as the published networks of NVlabs/edm are
    """

    name: ClassVar[str] = "edm"

    sigma_min: float = bounded(1e-6, 1e3, default=0.002)
    sigma_max: float = bounded(1e-5, 1e6, default=80.0)
    sigma_data: float = bounded(1e-3, 1e3, default=0.5)
    rho: float = bounded(0.1, 100.0, default=7.0)
    sigma_schedule: str = one_of("karras", "exponential", default="karras")
    prediction_type: str = one_of("edm", "v_prediction", "sample", default="edm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(
                f"{self.sigma_min} must be below sigma_max, {self.sigma_max}", argument="sigma_min"
            )

    @property
    def tells_sigma(self) -> bool:
        """A denoiser is told sigma."""
        return self.prediction_type == "sample"

    def point(self, level: float, time: float | None = None) -> Point:
        """The point at sigma = `level` > 0; told `time`, by default c_noise (sample: sigma)."""
        if self.prediction_type == "sample":
            noise: Pair = (1.0 / level, -1.0 / level)
            return Point(1.0, level, 1.0, level if time is None else time, (0.0, 1.0), noise)
        data = self.sigma_data
        total = level**2 + data**2
        c_out = level * data / math.sqrt(total)
        sign = 1.0 if self.prediction_type == "edm" else -1.0
        return Point(
            alpha=1.0,
            sigma=level,
            scale=1.0,
            time=0.25 * math.log(level) if time is None else time,
            x0=(data**2 / total, sign * c_out),
            # (x - D) / sigma, the cancellation done on paper: 1 - c_skip = sigma^2 / (sigma^2 + d^2)
            noise=(level / total, -sign * data / math.sqrt(total)),
            input_scale=1.0 / math.sqrt(total),
        )

    def natural(self, count: int, *, finite: bool = False, spacing: str = "linspace") -> np.ndarray:
        """Equation 5, or even in log(sigma). spacing: linspace only."""
        if spacing != "linspace":
            raise ConfigError(
                f"{spacing} has no meaning for the process edm; leave it at linspace",
                argument="timestep_spacing",
            )
        if self.sigma_schedule == "exponential":
            return geometric(self.sigma_max, self.sigma_min, count)
        high, low = self.sigma_max ** (1.0 / self.rho), self.sigma_min ** (1.0 / self.rho)
        return (high + np.linspace(0.0, 1.0, count) * (low - high)) ** self.rho
