"""The stochastic differential equations of Song et al. 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations" (arXiv:2011.13456), as processes; parameters as in the paper's code, score_sde.

    dx = f(t) x dt + g(t) dw,   t from 0 (data) to 1 (noise)

    VP      f = -beta(t) / 2    g^2 = beta(t)                          alpha^2 + sigma^2 = 1
    sub-VP  f = -beta(t) / 2    g^2 = beta(t) (1 - e^(-2 B(t)))        sigma = 1 - alpha^2
    VE      f = 0               g^2 = d sigma^2 / dt                   sigma = sigma_min^(1 - t) sigma_max^t, alpha = 1

with beta(t) = beta_min + t (beta_max - beta_min), B its integral from 0 and alpha = e^(-B / 2) (eq. 29, 30, 33).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .continuous import ContinuousProcess, geometric
from .points import Point, estimates


@dataclass(frozen=True)
class SDE(ContinuousProcess):
    """What the three have in common: a time in [0, 1] that solvers of the SDE itself step in."""

    own_levels: ClassVar[bool] = False

    def time_of(self, level: float) -> float:
        """t where sigma / alpha = `level`."""
        raise NotImplementedError

    def at(self, t: float) -> Point:
        """The point at time t."""
        raise NotImplementedError

    def drift(self, t: float) -> float:
        """f(t) of the SDE."""
        raise NotImplementedError

    def diffusion(self, t: float) -> float:
        """g(t) of the SDE."""
        raise NotImplementedError

    @property
    def end(self) -> float:
        """The time at which sampling ends; below it the score is too steep to be learnt."""
        raise NotImplementedError


@dataclass(frozen=True)
class VPSDE(SDE):
    """The variance-preserving SDE, in continuous time.

    beta_min, beta_max: beta(0) and beta(1)
    sampling_eps: the time at which sampling ends
    prediction_type: epsilon, the networks of score_sde (their score is -F / sigma); score; sample; v_prediction
    time: timesteps, the network is told (T - 1) t, T = num_train_timesteps, as in score_sde; unit, t itself
    """

    name: ClassVar[str] = "vp_sde"

    beta_min: float = bounded(1e-6, 1e3, default=0.1)
    beta_max: float = bounded(1e-6, 100.0, default=20.0)
    sampling_eps: float = bounded(1e-9, 0.5, default=1e-3)
    num_train_timesteps: int = bounded(2, 100_000, default=1000)
    time: str = one_of("timesteps", "unit", default="timesteps")
    prediction_type: str = one_of("epsilon", "score", "sample", "v_prediction", default="epsilon")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_min >= self.beta_max:
            raise ConfigError(f"{self.beta_min} must be below beta_max, {self.beta_max}", argument="beta_min")

    @property
    def end(self) -> float:
        """sampling_eps."""
        return self.sampling_eps

    def beta(self, t: float) -> float:
        """beta(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: float) -> float:
        """B(t), the integral of beta from 0 to t."""
        return t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)

    def time_of(self, level: float) -> float:
        """t where sigma / alpha = `level`: w^2 = e^B - 1."""
        return self._time_of_integral(math.log1p(level**2))

    def at(self, t: float) -> Point:
        """The point at time t."""
        integral = self.integral(t)
        return self._point(t, math.exp(-0.5 * integral), math.sqrt(-math.expm1(-integral)))

    def point(self, level: float, time: float | None = None) -> Point:
        """The point with sigma / alpha = `level` > 0."""
        point = self.at(self.time_of(level))
        alpha = 1.0 / math.sqrt(1.0 + level**2)
        return self._point(0.0, alpha, level * alpha, point.time if time is None else time)

    def natural(self, count: int, *, finite: bool = False, spacing: str = "linspace") -> np.ndarray:
        """Levels at times even from 1 to sampling_eps. spacing: linspace only."""
        _only_linspace(self.name, spacing)
        return np.array([self.at(float(t)).level for t in np.linspace(1.0, self.end, count)])

    def drift(self, t: float) -> float:
        """f(t) = -beta(t) / 2."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: float) -> float:
        """g(t) = sqrt(beta(t))."""
        return math.sqrt(self.beta(t))

    def _time_of_integral(self, integral: float) -> float:
        # The root of t beta_min + t^2 (beta_max - beta_min) / 2 = B in the form that does not cancel.
        root = math.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral)
        return 2.0 * integral / (self.beta_min + root)

    def _point(self, t: float, alpha: float, sigma: float, told: float | None = None) -> Point:
        if told is None:
            told = t * (self.num_train_timesteps - 1) if self.time == "timesteps" else t
        x0, noise = estimates(self.prediction_type, alpha, sigma)
        return Point(alpha, sigma, scale=alpha, time=told, x0=x0, noise=noise)


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """The sub-variance-preserving SDE: less noise than VP at every time. Fields as for `VPSDE`."""

    name: ClassVar[str] = "subvp"

    prediction_type: str = one_of("epsilon", "score", "sample", default="epsilon")

    def time_of(self, level: float) -> float:
        """t where sigma / alpha = `level`: w = (1 - e^-B) e^(B / 2) = 2 sinh(B / 2)."""
        return self._time_of_integral(2.0 * math.asinh(0.5 * level))

    def at(self, t: float) -> Point:
        """The point at time t."""
        integral = self.integral(t)
        return self._point(t, math.exp(-0.5 * integral), -math.expm1(-integral))

    def point(self, level: float, time: float | None = None) -> Point:
        """The point with sigma / alpha = `level` > 0."""
        point = self.at(self.time_of(level))
        return self._point(0.0, point.alpha, level * point.alpha, point.time if time is None else time)

    def diffusion(self, t: float) -> float:
        """g(t) = sqrt(beta(t) (1 - e^(-2 B(t))))."""
        return math.sqrt(self.beta(t) * -math.expm1(-2.0 * self.integral(t)))


@dataclass(frozen=True)
class VESDE(SDE):
    """The variance-exploding SDE.

    sigma_min, sigma_max: sigma(0) and sigma(1)
    sampling_eps: the time at which solvers of the SDE end
    prediction_type: score, the networks of score_sde (NCSN++); epsilon; sample
    time: sigma, the network is told sigma, as in score_sde; log_sigma; unit, t
    """

    name: ClassVar[str] = "ve"

    sigma_min: float = bounded(1e-6, 1e3, default=0.01)
    sigma_max: float = bounded(1e-5, 1e6, default=50.0)
    sampling_eps: float = bounded(1e-9, 0.5, default=1e-5)
    time: str = one_of("sigma", "log_sigma", "unit", default="sigma")
    prediction_type: str = one_of("score", "epsilon", "sample", default="score")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(
                f"{self.sigma_min} must be below sigma_max, {self.sigma_max}", argument="sigma_min"
            )

    @property
    def end(self) -> float:
        """sampling_eps."""
        return self.sampling_eps

    @property
    def tells_sigma(self) -> bool:
        """With time = sigma, the default."""
        return self.time == "sigma"

    def time_of(self, level: float) -> float:
        """t where sigma = `level`."""
        return math.log(level / self.sigma_min) / self._growth

    def at(self, t: float) -> Point:
        """The point at time t."""
        return self.point(self.sigma_min ** (1.0 - t) * self.sigma_max**t)

    def point(self, level: float, time: float | None = None) -> Point:
        """The point at sigma = `level` > 0."""
        if time is None:
            told = {"sigma": level, "log_sigma": math.log(level), "unit": self.time_of(level)}[self.time]
        else:
            told = time
        x0, noise = estimates(self.prediction_type, 1.0, level)
        return Point(1.0, level, scale=1.0, time=told, x0=x0, noise=noise)

    def natural(self, count: int, *, finite: bool = False, spacing: str = "linspace") -> np.ndarray:
        """Levels even in log(sigma) from sigma_max to sigma_min. spacing: linspace only."""
        _only_linspace(self.name, spacing)
        return geometric(self.sigma_max, self.sigma_min, count)

    def drift(self, t: float) -> float:
        """f(t) = 0."""
        return 0.0

    def diffusion(self, t: float) -> float:
        """g(t) = sigma(t) sqrt(2 log(sigma_max / sigma_min))."""
        return self.at(t).sigma * math.sqrt(2.0 * self._growth)

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


def _only_linspace(name: str, spacing: str) -> None:
    if spacing != "linspace":
        raise ConfigError(
            f"{spacing} has no meaning for the process {name}; leave it at linspace",
            argument="timestep_spacing",
        )
