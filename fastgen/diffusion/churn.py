"""Noise added before a step of an ODE solver, and removed again by the step: the churn of Karras et al. 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded
from .lambdas import point_at_log_snr
from .points import Ladder, Point
from .processes import AnyProcess
from .table import Z

MOST = math.sqrt(2.0) - 1.0  # of gamma: no more new noise than there is already


@dataclass(frozen=True)
class ChurnOptions:
    """Stochasticity, with the names of Karras et al. 2022, algorithm 2.

    S_churn: the noise-to-signal ratio grows by 1 + min(S_churn / steps, sqrt(2) - 1) before a step; 0 = none
    S_tmin, S_tmax: only where it lies between these; S_tmax None = no limit
    S_noise: standard deviation of the new noise, slightly above 1 against lost detail
    """

    S_churn: float = bounded(0.0, 1e6, default=0.0)
    S_tmin: float = bounded(0.0, 1e9, default=0.0)
    S_tmax: float | None = bounded(0.0, 1e9, default=None)
    S_noise: float = bounded(0.0, 10.0, default=1.0)


@dataclass(frozen=True)
class Arrival:
    """Where a step begins: at `point`, from the state x that the last one reached, as keep x + std z."""

    point: Point
    keep: float = 1.0
    std: float = 0.0

    def of(self, x: np.ndarray) -> np.ndarray:
        """The state at `point`, as a coefficient vector, from that of x."""
        return self.keep * x + self.std * Z


def arrivals(process: AnyProcess, ladder: Ladder, options: ChurnOptions) -> list[Arrival]:
    """Where the steps down `ladder` begin, and, last, its end: [steps + 1].

    On any process: x = alpha x_0 + sigma epsilon at ratio r = sigma / alpha becomes (alpha' / alpha) x + std z at
    r' = r (1 + gamma), with std = alpha' sqrt(r'^2 - r^2).
    """
    gamma = min(options.S_churn / len(ladder), MOST)
    highest = math.inf if options.S_tmax is None else options.S_tmax
    found = []
    for point in ladder.points:
        ratio = point.sigma / point.alpha if point.alpha > 0.0 else math.inf
        if gamma == 0.0 or math.isinf(ratio) or not options.S_tmin <= ratio <= highest:
            found.append(Arrival(point))
            continue
        begin = point_at_log_snr(process, point, point.log_snr - math.log1p(gamma))
        std = begin.alpha * ratio * math.sqrt(gamma * (2.0 + gamma))
        found.append(Arrival(begin, begin.alpha / point.alpha, options.S_noise * std))
    return [*found, Arrival(ladder.end)]


def initial_scale(ladder: Ladder, first: Arrival) -> float:
    """Standard deviation of the state where the first step begins."""
    return math.hypot(first.keep * ladder.initial_scale, first.std)
