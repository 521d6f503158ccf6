"""Encoding tables: the inverse of a solver's rows, the probability flow upwards; by closed forms of Gaussian data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import EDM, SOLVERS, VESDE, FlowMatching, NoiseSchedule, Table, run
from fastgen.diffusion.inversion import encoder, inverted
from fastgen.diffusion.levels import state_levels
from fastgen.diffusion.processes import AnyProcess
from fastgen.errors import ConfigError
from tests.refusals import refused

from .test_begin import MU, S

PROCESSES: dict[str, tuple[AnyProcess, str]] = {
    "epsilon": (NoiseSchedule(), "ddim"),
    "sample": (NoiseSchedule(prediction_type="sample"), "ddim"),
    "v": (NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"), "ddim"),
    "edm": (EDM(), "euler"),
    "flow": (FlowMatching(shift=3.0), "euler"),
    "ve": (VESDE(sigma_max=20.0), "euler"),
}


def exact(process: AnyProcess) -> Any:
    """The exact network of N(MU, S^2), at the level that belongs to the time it is told."""

    def network(given: np.ndarray, t: float) -> np.ndarray:
        if isinstance(process, NoiseSchedule):
            point = process.point_at(t, *process.alpha_sigma(round(t)))
        elif isinstance(process, FlowMatching):
            point = process.point(t / process.num_train_timesteps)
        else:
            point = process.point(math.exp(4.0 * t) if isinstance(process, EDM) else t)
        x = given / point.input_scale
        alpha, sigma = point.alpha, point.sigma
        x0 = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)
        return (x0 - point.x0[0] * x) / point.x0[1]

    return network


def points() -> np.ndarray:
    return np.linspace(MU - 2 * S, MU + 2 * S, 9).reshape(1, 1, -1)


def there_and_back(process: AnyProcess, name: str, steps: int, iterations: int) -> tuple[np.ndarray, float]:
    up, down = encoder(name, process, steps, iterations)
    state = run(up, exact(process), points(), np.zeros((len(up), 1)))
    again = run(down, exact(process), state, np.zeros((len(down), 1)))
    return state, float(np.abs(again - points()).max())


@pytest.mark.parametrize(("process", "name"), PROCESSES.values(), ids=PROCESSES)
def test_iterations_undo_the_solver(process: AnyProcess, name: str) -> None:
    """One more iteration brings every row closer to the one it undoes, down to rounding."""
    errors = [there_and_back(process, name, 40, iterations)[1] for iterations in (1, 2, 4, 40)]
    assert errors[1] < errors[0]
    assert errors[2] < errors[1]
    # What is left is where the last row does not look at its state: an image without the noise of the lowest level.
    lowest = 0.0
    if process.prediction_type == "sample":
        lowest = float(SOLVERS[name](process, 40, clip_sample=False).sigma[-1]) ** 2 * 4
    assert errors[3] <= 1e-9 + lowest


@pytest.mark.parametrize(("process", "name"), PROCESSES.values(), ids=PROCESSES)
def test_an_encoding_is_the_closed_form(process: AnyProcess, name: str) -> None:
    """(x - alpha mu) / spread is the same all along the probability flow (Song et al. 2021, section 4.3)."""
    errors: dict[str, list[float]] = {name: [], "heun": []}
    for solver, found in errors.items():
        for steps in (50, 100, 200):
            up, down = encoder(solver, process, steps, 3)
            alpha, sigma = state_levels(down, process)[0]
            wanted = (points() - MU) / S
            state = run(up, exact(process), points(), np.zeros((len(up), 1)))
            found.append(float(np.abs((state - alpha * MU) / math.hypot(alpha * S, sigma) - wanted).max()))
    print(errors)
    first, second = errors[name], errors["heun"]
    assert first[2] < 0.75 * first[0]
    assert first[2] <= 0.15
    assert second[2] <= first[2]


def test_one_iteration_is_ddim_inversion_as_diffusers_has_it() -> None:
    """Its network is asked with the state before, at the time of the state after (DDIMInverseScheduler)."""
    from diffusers import DDIMInverseScheduler

    schedule, steps = NoiseSchedule(), 10
    theirs = DDIMInverseScheduler(
        num_train_timesteps=1000, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs.set_timesteps(steps)
    up, _ = encoder("ddim", schedule, steps, 1)
    asked = [float(t) for t in up.time]
    assert asked == sorted(asked)
    assert asked == [99.0 + 100.0 * k for k in range(steps)]
    state, network = points(), exact(schedule)
    by_hand = state
    bars = [1.0, *(schedule.alpha_bar(int(t)) for t in asked)]
    for k, t in enumerate(asked):  # x_t = sqrt(bar_t) x_0 + sqrt(1 - bar_t) epsilon, of the state before
        epsilon = network(by_hand, t)
        x0 = (by_hand - math.sqrt(1.0 - bars[k]) * epsilon) / math.sqrt(bars[k])
        by_hand = math.sqrt(bars[k + 1]) * x0 + math.sqrt(1.0 - bars[k + 1]) * epsilon
    found = run(up, network, state, np.zeros((len(up), 1)))
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)


def test_what_cannot_be_undone_is_refused() -> None:
    schedule = NoiseSchedule()
    table: Table = SOLVERS["dpm++2m"](schedule, 10)
    with refused(ConfigError, "solver", "dpm++2m"):
        inverted(table, 1)
    with refused(ConfigError, "solver", "ddim"):
        inverted(SOLVERS["ddim"](schedule, 10, eta=0.5, clip_sample=False), 1)
    with refused(ConfigError, "clip_sample"):
        inverted(SOLVERS["ddim"](schedule, 10), 1)
