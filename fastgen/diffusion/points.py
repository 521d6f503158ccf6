"""Step points: the falling sequence of noise levels that a solver visits, in the form that all processes share.

Every process here mixes the clean sample with noise, x = alpha x_0 + sigma epsilon, and they differ in how alpha and
sigma go together, what the network is asked with, and what it answers:

    variance preserving   alpha^2 + sigma^2 = 1     Ho et al. 2020, :class:`~fastgen.diffusion.schedule.NoiseSchedule`
    variance exploding    alpha = 1                 Song et al. 2021; Karras et al. 2022
    flow matching         alpha = 1 - sigma         Lipman et al. 2023; Liu et al. 2023

A solver gets a :class:`StepPoints` and never asks which process they belong to. What diffusers and k-diffusion call
the sigmas of a run, its `timesteps` and its noise levels are here three properties of the same points. Two families of
solvers use two different variables:

    z = x / scale,  w = sigma / scale:   dz / dw = (z - x_0) / w          Euler, Heun, LMS, Runge-Kutta
    lambda = log(alpha / sigma):         x / sigma, grows with x_0        DPM-Solver, UniPC, DEIS, SA-Solver

The scale is alpha where signal and noise fall and rise on their own (so that w is Karras' sigma), and 1 in flow
matching, where dx / dsigma is the velocity. `estimates` says what the network's output F means:

    epsilon        F = epsilon
    sample         F = x_0
    v_prediction   F = alpha epsilon - sigma x_0     alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, appendix D)
    velocity       F = epsilon - x_0                 alpha + sigma = 1 (flow matching, Lipman et al. 2023)
    score          F = -epsilon / sigma              (Song et al. 2021)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..errors import ConfigError
from .table import X0, F, X

Pair = tuple[float, float]  # the coefficients of x and of F


@dataclass(frozen=True)
class Point:
    """A noise level: x = alpha x_0 + sigma epsilon.

    scale: of z = x / scale, see the module. time: what the network is told; input_scale: it is given input_scale * x.
    x0, noise: (of x, of F) in the estimates x_0 = p x + q F and epsilon = r x + s F that the network's output F means.
    A point that only ends a run is given without them.
    """

    alpha: float
    sigma: float
    scale: float
    time: float = 0.0
    x0: Pair = (0.0, 0.0)
    noise: Pair = (0.0, 0.0)
    input_scale: float = 1.0

    @property
    def level(self) -> float:
        """w = sigma / scale, 0 at the clean end."""
        return self.sigma / self.scale

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma): half the logarithm of the signal-to-noise ratio; inf at the clean end."""
        if self.sigma == 0.0:
            return math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha > 0.0 else -math.inf

    def epsilon(self, clipped: bool = False) -> np.ndarray:
        """The estimate of the noise as a coefficient vector.

        clipped: from the clipped x_0, a difference of near numbers; else from F, where nothing cancels.
        """
        if clipped:
            return (X - self.alpha * X0) / self.sigma
        return self.noise[0] * X + self.noise[1] * F

    def slope(self, clipped: bool = False) -> np.ndarray:
        """dz / dw = (z - x_0) / w as a coefficient vector, unclipped from F: there x_0 and epsilon both come from it.

        The noise where the scale is alpha, epsilon - x_0 in flow matching.
        """
        if clipped or self.alpha == 0.0:
            return (X / self.scale - X0) / self.level
        if self.scale == self.alpha:
            return self.epsilon()
        return self.epsilon() - self.x0[0] * X - self.x0[1] * F


@dataclass(frozen=True)
class StepPoints:
    """The points that one run visits, noisy to clean.

    starts: where each step starts and the network is evaluated, [steps]
    end: where the last step ends; the network is not evaluated there
    initial_scale: the standard deviation of the state at the first point
    left_out: how many steps before the first one are not taken, see `after`
    """

    starts: tuple[Point, ...]
    end: Point
    initial_scale: float = 1.0
    left_out: int = 0

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.starts)

    def after(self, begin_index: int) -> StepPoints:
        """The points without the first steps. The state there is its caller's, so that its scale is 1."""
        if not begin_index:
            return self
        return StepPoints(self.starts[begin_index:], self.end, left_out=begin_index)

    @cached_property
    def all(self) -> tuple[Point, ...]:
        """The starts and the end: [steps + 1]."""
        return (*self.starts, self.end)

    @cached_property
    def steps(self) -> tuple[tuple[Point, Point], ...]:
        """Every step as (start, end): [steps]."""
        return tuple(itertools.pairwise(self.all))

    @cached_property
    def levels(self) -> np.ndarray:
        """w of all points, float64 [steps + 1], falling."""
        return np.array([point.level for point in self.all])

    @cached_property
    def log_snrs(self) -> np.ndarray:
        """lambda of all points, float64 [steps + 1], rising; inf at a clean end."""
        return np.array([point.log_snr for point in self.all])


def clean(scale: float = 1.0) -> Point:
    """The end without noise."""
    return Point(alpha=scale, sigma=0.0, scale=scale)


def shown(point: Point) -> Point:
    """`point` as an end whose state is z, not x: what k-diffusion and diffusers hand out where noise is left."""
    return replace(point, alpha=point.alpha / point.scale, sigma=point.level, scale=1.0)


def estimates(prediction_type: str, alpha: float, sigma: float) -> tuple[Pair, Pair]:
    """((p, q), (r, s)) of x_0 = p x + q F and epsilon = r x + s F.

    alpha and sigma must be above 0 where a formula divides by them. ConfigError for an unknown prediction type.
    """
    if prediction_type == "epsilon":
        return (1.0 / alpha, -sigma / alpha), (0.0, 1.0)
    if prediction_type == "sample":
        return (0.0, 1.0), (1.0 / sigma, -alpha / sigma)
    if prediction_type == "v_prediction":
        return (alpha, -sigma), (sigma, alpha)
    if prediction_type == "velocity":
        return (1.0, -sigma), (1.0, alpha)
    if prediction_type == "score":
        return (1.0 / alpha, sigma**2 / alpha), (0.0, -sigma)
    raise ConfigError(f"unknown, got {prediction_type!r}", argument="prediction_type")
