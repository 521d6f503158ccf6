"""PNDM and PLMS, Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv:2202.09778).

Classical methods of numerical mathematics, with DDIM's step in place of the straight line: `transfer` takes a state
from one timestep to another along a given estimate of the noise (section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .adams import EVEN_WEIGHTS
from .clipping import ClipOptions
from .points import Pair, Point
from .schedule import NoiseSchedule, zero_snr_error
from .table import F, H, Table, TableBuilder, X
from .timesteps import SPACINGS, STABLE, timesteps

HIGHEST = (
    3.0  # sigma / alpha over the steps: starting above it, even weights magnify what estimates differ by
)
WARM_UP = 3  # Runge-Kutta steps, which leave the three estimates that the fourth-order method looks back at
EACH = 5  # steps of the run for each of them: then they take at most half of its evaluations


@dataclass(frozen=True)
class PLMSOptions(ClipOptions):
    """Options of `plms`: those of `ClipOptions`, and

    timestep_spacing, steps_offset: see `fastgen.diffusion.timesteps`; stable is trailing spacing from the last timestep
        where sigma / alpha is at most 3 * steps: the method takes steps of all sizes alike, and the first one from pure
        noise is on some schedules too large for it
    set_alpha_to_one: end at the clean sample (alphas_cumprod = 1) rather than at alphas_cumprod[0]
    constant_stride: step from t to t - T // steps, as diffusers does, rather than to the next visited timestep, and put
        Runge-Kutta's midpoints (T // steps) // 2 from their ends. The two agree for leading spacing, where T // steps
        is even
    sum_outputs: sum the network's outputs of several timesteps, and take the noise from the sum, as diffusers does,
        rather than sum the noises. The two agree for an epsilon prediction
    """

    diffusers: ClassVar[Mapping[str, Any]] = {
        "timestep_spacing": "leading",
        "set_alpha_to_one": False,
        "constant_stride": True,
        "sum_outputs": True,
    }

    timestep_spacing: str = one_of(STABLE, *SPACINGS, default=STABLE)
    steps_offset: int = bounded(0, 1000, default=0)
    set_alpha_to_one: bool = True
    constant_stride: bool = False
    sum_outputs: bool = False


@dataclass(frozen=True)
class PNDMOptions(PLMSOptions):
    """Options of `pndm`: those of `plms`, and

    prk_steps: how many steps Runge-Kutta's method takes at the start, four evaluations each; 3 in the paper and in
        diffusers, whose skip_prk_steps is 0. None: one for every 5 steps of the run, 3 at most. With 3 in a run of 4
        steps, 12 of its 13 evaluations are Runge-Kutta's and all steps are wide: 93 of 100 digits of zoo:ddpm-mnist are
        right, and 96 with 7 steps after one, 10 evaluations
    """

    diffusers: ClassVar[Mapping[str, Any]] = {**PLMSOptions.diffusers, "prk_steps": WARM_UP}

    prk_steps: int | None = bounded(0, WARM_UP, default=None)


def plms(schedule: NoiseSchedule, steps: int, options: PLMSOptions) -> Table:
    """Pseudo linear multistep: fourth-order Adams-Bashforth, begun with an improved Euler step and lower orders.

    steps + 1 evaluations (1 for one step), as in diffusers (skip_prk_steps): the first step asks the network at its
    two ends. Three slots.
    """
    walk = _Walk(schedule, steps, options)
    rows = walk.builder("plms")
    _multistep(walk, rows, 0, 0)
    return rows.table()


def pndm(schedule: NoiseSchedule, steps: int, options: PNDMOptions) -> Table:
    """Up to three pseudo Runge-Kutta steps of four evaluations, then `plms`; four slots.

    steps + 3 * prk_steps evaluations; without Runge-Kutta's, those of `plms`. ConfigError for no more steps than
    prk_steps, and with them for more than T // 2, where midpoints fall on timesteps visited.
    """
    taken = steps - options.begin_index
    first = min(WARM_UP, taken // EACH) if options.prk_steps is None else options.prk_steps
    if first and not (first < taken and steps <= schedule.num_train_timesteps // 2):
        raise ConfigError(
            f"pndm takes from {first + 1} to num_train_timesteps // 2 = {schedule.num_train_timesteps // 2} "
            f"steps where {first} are Runge-Kutta's, got {steps}; use plms",
            argument="steps",
        )
    walk = _Walk(schedule, steps, options)
    rows = walk.builder("pndm")
    for i in range(first):
        _runge_kutta(walk, rows, i)
    _multistep(walk, rows, first, first)
    return rows.table()


class _Walk:
    """The timesteps of a run, and the state's way between two of them."""

    def __init__(self, schedule: NoiseSchedule, steps: int, options: PLMSOptions) -> None:
        if options.sum_outputs and options.clipped:
            raise ConfigError(
                "sums outputs, not estimates of x_0, and so cannot be used with clipping",
                argument="sum_outputs",
            )
        self.schedule, self.options = schedule, options
        count, spacing = schedule.num_train_timesteps, options.timestep_spacing
        if spacing == STABLE:
            low_enough = int(np.count_nonzero(schedule.levels <= HIGHEST * steps))
            count, spacing = max(low_enough, min(2 * steps, count)), "trailing"
        self.visited = timesteps(count, steps, spacing, options.steps_offset).tolist()[options.begin_index :]
        self.stride = count // steps
        if schedule.alpha_bar(self.visited[0]) == 0.0:
            raise zero_snr_error(self.visited[0])

    def builder(self, name: str) -> TableBuilder:
        return TableBuilder(name, clip=self.options.clip, threshold=self.options.threshold)

    def following(self, i: int) -> int:
        """The timestep that step i ends at; below 0 is the end."""
        if self.options.constant_stride:
            return self.visited[i] - self.stride
        return self.visited[i + 1] if i + 1 < len(self.visited) else -1

    def point(self, t: int) -> Point:
        return self.schedule.point_at(t, *self.schedule.alpha_sigma(t))

    def estimate(self, t: int) -> np.ndarray:
        """What is remembered of the network's answer at t: the noise, or the output itself."""
        return F if self.options.sum_outputs else self.point(t).epsilon(clipped=self.options.clipped)

    def transfer(self, t: int, s: int) -> Pair:
        """(of x, of the estimate) in the state at s, from x at t."""
        end = -1 if self.options.set_alpha_to_one else 0
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            self.schedule.alpha_sigma(time if time >= 0 else end) for time in (t, s)
        )
        of_x, of_noise = alpha_s / alpha_t, sigma_s - alpha_s / alpha_t * sigma_t
        if self.options.sum_outputs:
            r, q = self.point(t).noise
            return of_x + of_noise * r, of_noise * q
        return of_x, of_noise


def _multistep(walk: _Walk, rows: TableBuilder, begin: int, remembered: int) -> None:
    """Adams-Bashforth from step `begin`, where slots 0 .. remembered - 1 hold estimates, the newest last."""
    for i in range(begin, len(walk.visited)):
        t = walk.visited[i]
        newest = walk.estimate(t)
        past = [newest, *(H[(remembered - k) % 3] for k in range(1, 4))]
        weights = EVEN_WEIGHTS[min(remembered, 3)]
        of_x, of_noise = walk.transfer(t, walk.following(i))
        x = of_x * X + of_noise * sum(w * e for w, e in zip(weights, past, strict=False))
        rows.evaluate(walk.point(t), x, slot=remembered % 3, history=newest)
        remembered += 1
        if (
            i == 0 and len(walk.visited) > 1
        ):  # again from the beginning, with the mean of the two ends' estimates
            end = walk.visited[1]
            start = (X - of_noise * H[0]) / of_x
            of_x, of_noise = walk.transfer(end + walk.stride if walk.options.constant_stride else t, end)
            x = of_x * start + of_noise * (walk.estimate(end) + H[0]) / 2
            rows.evaluate(walk.point(end), x)


def _runge_kutta(walk: _Walk, rows: TableBuilder, i: int) -> None:
    """Step i by the classical method of order 4. Its first estimate goes to slot i, where `_multistep` looks for it.

    Slot 3 serves for the rest: the state x at the beginning and the second estimate are not kept but taken back from
    the states that were made of them.
    """
    t, s = walk.visited[i], walk.visited[i + 1]
    middle = moved = (t + s) // 2
    if (
        walk.options.constant_stride
    ):  # diffusers brings the first state to another timestep than the network is told
        middle, moved = s + walk.stride // 2, t - walk.stride // 2
    first, half, whole = walk.transfer(t, moved), walk.transfer(t, middle), walk.transfer(t, s)

    newest = walk.estimate(t)
    rows.evaluate(walk.point(t), first[0] * X + first[1] * newest, slot=i, history=newest)

    newest, start = walk.estimate(middle), (X - first[1] * H[i]) / first[0]
    rows.evaluate(walk.point(middle), half[0] * start + half[1] * newest, slot=3, history=start)

    second, start = (X - half[0] * H[3]) / half[1], H[3]
    most = whole[0] * start + whole[1] * (H[i] / 6 + second / 3 + newest / 3)
    rows.evaluate(walk.point(middle), whole[0] * start + whole[1] * newest, slot=3, history=most)

    rows.evaluate(walk.point(s), H[3] + whole[1] / 6 * walk.estimate(s))
