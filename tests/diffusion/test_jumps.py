"""Tables run back and forth (RePaint): the order of steps, the marginals they keep, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastgen.diffusion import EDM, SOLVERS, FlowMatching, NoiseSchedule
from fastgen.diffusion.jumps import beginnings, with_jumps
from fastgen.diffusion.levels import state_levels
from fastgen.diffusion.processes import AnyProcess
from fastgen.errors import ConfigError
from tests.refusals import refused

from .test_begin import MU, S

PROCESSES: dict[str, tuple[AnyProcess, str]] = {
    "discrete": (NoiseSchedule(), "ddim"),
    "edm": (EDM(), "euler_a"),
    "flow": (FlowMatching(), "euler_a"),
    "two rows a step": (NoiseSchedule(prediction_type="v_prediction"), "dpm++2s_a"),
}


def paper_order(steps: int, jump_length: int, resamples: int) -> list[int]:
    """Algorithm 1 with jumps, written out: how many steps are done before each that is done."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), resamples - 1)
    t, order = steps, []
    while t >= 1:
        order.append(steps - t)
        t -= 1
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            t += jump_length
    return order


@pytest.mark.parametrize(
    ("steps", "jump", "times"), [(10, 3, 2), (9, 1, 3), (25, 5, 5), (7, 4, 1), (6, 5, 4)]
)
def test_the_order_of_steps_is_the_papers(steps: int, jump: int, times: int) -> None:
    schedule = NoiseSchedule()
    plain = SOLVERS["ddim"](schedule, steps, eta=1.0)
    made = with_jumps(plain, schedule, jump, times)
    order = paper_order(steps, jump, times)
    np.testing.assert_array_equal(made.time, plain.time[order])
    np.testing.assert_array_equal(made.noise_step, np.arange(len(order)))
    levels = state_levels(made, schedule)
    np.testing.assert_array_equal(levels[:-1], state_levels(plain, schedule)[order])


@pytest.mark.parametrize(("process", "name"), PROCESSES.values(), ids=PROCESSES)
def test_marginals_are_kept(process: AnyProcess, name: str) -> None:
    """Of Gaussian data with the exact network, every row's state has the mean and spread of its level.

    Rows are affine, so that both are exact numbers: what is off is the solver's own error, which jumps must not add to.
    """
    plain = SOLVERS[name](process, 120, **({"clip_sample": False} if name == "ddim" else {}))
    made = with_jumps(plain, process, 20, 3)
    assert len(made) > 2 * len(plain)
    worst = [off(table, process) for table in (plain, made)]
    assert worst[1] <= 1.5 * worst[0] + 1e-3, worst
    assert worst[1] <= 0.06


def off(table, process: AnyProcess) -> float:
    """The largest error of mean or spread at any beginning of a step, relative to the level's own spread."""
    levels, starts, worst = state_levels(table, process), set(beginnings(table)), 0.0
    alpha, sigma = levels[0]
    # The state and a history slot as affine forms: mean, and coefficients of independent unit normals.
    size = len(table) + 2
    state = np.zeros(size)
    state[0], state[1] = alpha * MU, math.hypot(alpha * S, sigma)
    slots = [np.zeros(size) for _ in range(4)]
    for i in range(len(table)):
        alpha, sigma = levels[i]
        wanted = math.hypot(alpha * S, sigma)
        if i in starts:
            spread = float(np.linalg.norm(state[1:]))
            worst = max(worst, abs(spread - wanted) / wanted, abs(state[0] - alpha * MU) / wanted)
        gain = alpha * S**2 / wanted**2
        x0 = gain * state
        x0[0] += MU - gain * alpha * MU
        output = (x0 - table.p[i] * state) / table.q[i]
        z = np.zeros(size)
        z[2 + i] = 1.0
        terms = [state, x0, output, z, *slots]
        kept = sum(c * t for c, t in zip(table.b[i], terms, strict=True))
        state = sum(c * t for c, t in zip(table.a[i], terms, strict=True))
        if table.slot[i] >= 0:
            slots[int(table.slot[i])] = kept
    return worst


def test_what_cannot_jump_is_refused() -> None:
    schedule = NoiseSchedule()
    for name in ("dpm++2m", "unipc", "lms"):
        with refused(ConfigError, "solver", name):
            with_jumps(SOLVERS[name](schedule, 10), schedule, 2, 2)
    learned = SOLVERS["ddpm"](schedule, 10, variance_type="learned_range")
    with refused(ConfigError, "solver", "ddpm"):
        with_jumps(learned, schedule, 2, 2)
    with refused(ConfigError, "jump_length", 10):
        with_jumps(SOLVERS["ddim"](schedule, 10), schedule, 10, 2)
