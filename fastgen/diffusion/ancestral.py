"""Ancestral solvers: each step removes more noise than it should and adds fresh noise for the difference.

    x' = alpha' x_0 + down epsilon + up z,   down^2 + up^2 = sigma'^2

Whatever `up` is, a perfect x_0 and epsilon give the right distribution at the next level; eta = 1 is the one of the
process run backwards given x_0 (Ho et al. 2020, eq. 7; Song et al. 2021, eq. 16):

    up = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2)

at most sigma'. Written with alpha and sigma, the same lines serve every process. On a variance-preserving one they are
k-diffusion's sample_euler_ancestral, sample_dpm_2_ancestral, sample_dpmpp_2s_ancestral and sample_dpmpp_sde, whose
sigma is k = sigma / alpha here; and where flow matching starts, alpha = 0 and k infinite, every step is an Euler step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from ..config import bounded
from .lambdas import point_at_log_snr
from .points import Point
from .processes import AnyProcess
from .runge_kutta import StableOptions, runge_kutta_step
from .sigmas import SigmaOptions, sigma_points
from .table import X0, H, Table, TableBuilder, X, Z


@dataclass(frozen=True)
class AncestralOptions(SigmaOptions):
    """Options of the ancestral solvers: those of `SigmaOptions`, and

    eta: how much of the noise is fresh, 0 none (deterministic), 1 as much as the process backwards adds
    s_noise: factor of the fresh noise; other than 1 it leaves the process
    """

    eta: float = bounded(0.0, 100.0, default=1.0)
    s_noise: float = bounded(0.0, 100.0, default=1.0)


@dataclass(frozen=True)
class DPM2AncestralOptions(StableOptions, AncestralOptions):
    """Options of `dpm2_a`: those of `AncestralOptions`, with the levels of `StableOptions`."""


@dataclass(frozen=True)
class Move:
    """An ancestral step from `now` to `after`: standard deviations of the noise kept (down) and added (up)."""

    now: Point
    after: Point
    down: float
    up: float

    @property
    def ratio(self) -> float:
        """k' / k, k = sigma / alpha: down to where the step goes before noise is added, 0 to 1."""
        return self.down * self.now.alpha / (self.after.alpha * self.now.sigma)


def move(now: Point, after: Point, eta: float) -> Move:
    """The step from `now` to `after`."""
    left = after.sigma * now.alpha / (after.alpha * now.sigma)  # 0 from pure noise, and to the clean end
    up = min(1.0, eta * math.sqrt(1.0 - left**2))
    # 1 - up^2, written so that nothing cancels where eta is 1.
    down = math.sqrt(max(0.0, 1.0 - eta**2 + (eta * left) ** 2))
    return Move(now, after, after.sigma * down, after.sigma * up)


def euler_step(step: Move, options: AncestralOptions) -> np.ndarray:
    """alpha' x_0 + down epsilon + up z, as a coefficient vector."""
    x = step.after.alpha * X0 + options.s_noise * step.up * Z
    return x + step.down * step.now.epsilon(options.clipped) if step.down else x


def middle_of(schedule: AnyProcess, step: Move) -> Point | None:
    """The point halfway to `down`, even in log-SNR; None where there is none: from pure noise, to the clean end."""
    if step.down == 0.0 or step.now.alpha == 0.0:
        return None
    reached = math.log(step.after.alpha) - math.log(step.down)
    return point_at_log_snr(schedule, step.now, (step.now.log_snr + reached) / 2)


def euler_a(schedule: AnyProcess, steps: int, options: AncestralOptions) -> Table:
    """Euler ancestral: DDIM with eta on the points of Euler, at noise levels between timesteps too."""
    points = sigma_points(schedule, steps, options)
    rows = TableBuilder("euler_a", clip=options.clip, threshold=options.threshold)
    for now, after in points.steps:
        rows.evaluate(now, euler_step(move(now, after, options.eta), options))
    return rows.table(initial_scale=points.initial_scale)


def dpm2_a(schedule: AnyProcess, steps: int, options: DPM2AncestralOptions) -> Table:
    """DPM2 down to k_d, then noise: y = x / alpha goes by (k_d - k) epsilon, the epsilon found at sqrt(k k_d).

    At most 2 * steps - 1 rows.
    """
    points = sigma_points(schedule, steps, options, whole_karras=True)
    rows = TableBuilder("dpm2_a", clip=options.clip, threshold=options.threshold)
    for now, after in points.steps:
        step = move(now, after, options.eta)
        middle = middle_of(schedule, step)
        if middle is None:
            rows.evaluate(now, euler_step(step, options))
            continue
        down = Point(after.alpha, step.down, scale=after.alpha)
        k, k_middle, k_down = (point.sigma / point.alpha for point in (now, middle, down))
        runge_kutta_step(
            rows,
            [replace(point, scale=point.alpha) for point in (now, middle)],  # so that levels are k
            down,
            (((k_middle - k) / (k_down - k),), (0.0, 1.0)),
            options.clipped,
            functools.partial(np.add, options.s_noise * step.up * Z),
        )
    return rows.table(initial_scale=points.initial_scale)


def dpmpp_2s_a(schedule: AnyProcess, steps: int, options: AncestralOptions) -> Table:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1, r = 1/2) down to k_d, then noise.

    At most 2 * steps - 1 rows. The slot holds what the step takes of the state before it.
    """
    points = sigma_points(schedule, steps, options)
    rows = TableBuilder("dpm++2s_a", clip=options.clip, threshold=options.threshold)
    for now, after in points.steps:
        step = move(now, after, options.eta)
        middle = middle_of(schedule, step)
        if middle is None:
            rows.evaluate(now, euler_step(step, options))
            continue
        half = move(now, middle, eta=0.0)
        rows.evaluate(now, _toward_x0(half), slot=0, history=step.down / now.sigma * X)
        rows.evaluate(middle, H[0] + after.alpha * (1.0 - step.ratio) * X0 + options.s_noise * step.up * Z)
    return rows.table(initial_scale=points.initial_scale)


def dpmpp_sde(schedule: AnyProcess, steps: int, options: AncestralOptions) -> Table:
    """DPM-Solver++ (SDE), k-diffusion's sample_dpmpp_sde with r = 1/2: both halves of a step share one noise path.

    The first row goes to the middle of the step with the first part of the path, the second starts again with all of
    it. A path is Brownian motion in k = sigma / alpha; z, z' of the two rows are its parts:

        (W(k) - W(k')) / sqrt(k - k') = sqrt((k - k_m) / (k - k')) z + sqrt((k_m - k') / (k - k')) z'

    At most 2 * steps - 1 rows. The slot holds the state before the step and its share of the noise.
    """
    points = sigma_points(schedule, steps, options)
    rows = TableBuilder("dpm++sde", clip=options.clip, threshold=options.threshold)
    for now, after in points.steps:
        step = move(now, after, options.eta)
        if after.sigma == 0.0 or now.alpha == 0.0:
            rows.evaluate(now, euler_step(step, options))
            continue
        middle = point_at_log_snr(schedule, now, (now.log_snr + after.log_snr) / 2)
        half = move(now, middle, options.eta)
        k, k_middle, k_after = (point.sigma / point.alpha for point in (now, middle, after))
        noise = options.s_noise * step.up / math.sqrt(k - k_after) * Z
        kept = step.down / now.sigma * X + math.sqrt(k - k_middle) * noise
        rows.evaluate(now, _toward_x0(half) + options.s_noise * half.up * Z, slot=0, history=kept)
        rows.evaluate(
            middle, H[0] + after.alpha * (1.0 - step.ratio) * X0 + math.sqrt(k_middle - k_after) * noise
        )
    return rows.table(initial_scale=points.initial_scale)


def _toward_x0(step: Move) -> np.ndarray:
    """The step without its noise, as a share of x and of x_0."""
    return step.down / step.now.sigma * X + step.after.alpha * (1.0 - step.ratio) * X0
