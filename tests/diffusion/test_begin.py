"""Runs that begin after some of their steps (begin_index): where, at which level, and as what.

Where no history is read, such a run is the end of the whole one. A multistep method begins anew, as in diffusers, and
is right by the exact flow of Gaussian data.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.diffusion import EDM, SOLVERS, VESDE, VPSDE, FlowMatching, NoiseSchedule, SubVPSDE, Table, run
from fastgen.diffusion.jumps import beginnings, cut
from fastgen.diffusion.levels import state_levels
from fastgen.diffusion.processes import AnyProcess
from fastgen.diffusion.sde import SDE
from fastgen.errors import ConfigError
from tests.refusals import refused

from .diffusers_oracle import basis_run, deviation, in_float64, scheduler
from .golden import TOLERANCE

PROCESSES: dict[str, AnyProcess] = {
    "discrete": NoiseSchedule(),
    "cosine": NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    "edm": EDM(),
    "flow": FlowMatching(shift=3.0),
    "vp_sde": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
}
STEPS, FIRST = 25, 11
ANEW = (  # methods that look back, and two whose grouping of evaluations goes by their number
    *("dpm++2m", "lms", "dpm_multistep", "dpm++3m", "dpm++2m_sde", "dpm++3m_sde", "unipc", "deis", "plms"),
    *("pndm", "ipndm", "sa", "dpm_singlestep", "dpm++2s", "dpm++3s"),
)
MU, S = 0.4, 0.6  # of the Gaussian data


def tables(name: str, process: AnyProcess, **options: Any) -> tuple[Table, Table] | None:
    """(the whole run, the same from step FIRST); None where the solver is not for this process."""
    solver = SOLVERS[name]
    if (solver.discrete and not isinstance(process, NoiseSchedule)) or (
        solver.sde and not isinstance(process, SDE)
    ):
        return None
    whole = solver(process, STEPS, **options)
    return whole, SOLVERS[name](process, STEPS, begin_index=FIRST, **options)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_left_is_the_end_of_the_run(name: str, process: AnyProcess) -> None:
    made = tables(name, process)
    if made is None:
        return
    whole, later = made
    skipped = len(whole) - len(later)
    assert skipped >= FIRST
    if name in ("plms", "pndm"):  # begin with evaluations of their own
        return
    for column in ("time", "sigma", "p", "q", "input_scale"):
        np.testing.assert_array_equal(getattr(later, column), getattr(whole, column)[skipped:])
    if name in ANEW:
        return
    assert skipped in beginnings(whole)
    for a, b in ((later, whole), (later, cut(whole, skipped))):
        np.testing.assert_array_equal(a.a, b.a[-len(later) :])
        np.testing.assert_array_equal(a.b, b.b[-len(later) :])


@pytest.mark.parametrize("count", [12, 25])  # with fewer than 15 steps the last ones are of lower order
@pytest.mark.parametrize(
    ("name", "rows", "options"),
    [
        ("ddpm", 1, {"clip_sample": False}),
        ("ddim", 1, {"clip_sample": False, "eta": 0.5}),
        ("euler", 1, {}),
        ("euler_a", 1, {}),
        ("heun", 2, {}),
        ("dpm++2m", 1, {}),
        ("dpm++3m", 1, {"solver_type": "heun"}),
        ("dpm++2m_sde", 1, {}),
        ("dpm_multistep", 1, {"solver_order": 2, "use_karras_sigmas": True}),
    ],
)
def test_as_diffusers_begins(name: str, rows: int, options: dict[str, Any], count: int) -> None:
    """diffusers' scheduler after set_begin_index, driven with unit vectors in float64."""
    schedule, first = NoiseSchedule(), 5
    table = SOLVERS[name](schedule, count, begin_index=first, as_diffusers=True, **options)

    def theirs(network: Any, x: torch.Tensor, noise: Any) -> torch.Tensor:
        oracle, module, arguments = scheduler(name, schedule, **options)
        current: list[torch.Tensor] = []
        with in_float64(module, noise=lambda *args, **kwargs: current[-1]):
            oracle.set_timesteps(count)
            if hasattr(oracle, "set_begin_index"):
                oracle.set_begin_index(rows * first)
            level = float(table.sigma[0])
            if name in ("euler", "euler_a", "heun"):  # their state is x / alpha
                x = x * math.sqrt(level**2 + 1)
            for i, t in enumerate(oracle.timesteps[rows * first :]):
                current.append(noise[i])
                x = oracle.step(
                    network(oracle.scale_model_input(x, t), float(t)), t, x, **arguments
                ).prev_sample
        return x

    def ours(network: Any, x: torch.Tensor, noise: Any) -> torch.Tensor:
        return run(table, network, x, noise)

    assert deviation(basis_run(ours, len(table)), basis_run(theirs, len(table))) <= TOLERANCE


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", ["dpm++2m", "unipc", "lms", "heun", "euler", "plms"])
def test_the_flow_from_the_middle(name: str, process: AnyProcess) -> None:
    """From the state at the run's level, the exact flow of Gaussian data ends where the table does, in the limit."""
    if name == "plms" and not isinstance(process, NoiseSchedule):
        return
    table = SOLVERS[name](process, 160, begin_index=80)
    alpha, sigma = state_levels(table, process)[0]
    z = np.linspace(-2.0, 2.0, 9).reshape(1, 1, -1)
    x = alpha * MU + math.hypot(alpha * S, sigma) * z
    found = run(table, best(process, table), x, [x] * len(table))
    # The last step, to the estimate of x_0, loses a share w^2 / (2 S^2) of the spread; a first-order method as much of
    # each of 80 steps' ends as a step is long.
    lost = float(table.sigma[-1]) ** 2 / S
    assert float(np.abs(found - (MU + S * z)).max()) <= lost + (0.03 if name == "euler" else 2e-3)


def best(process: AnyProcess, table: Table) -> Any:
    """The exact network of N(MU, S^2) for the rows of `table`, in order."""
    rows = iter(range(len(table)))

    def network(given: np.ndarray, t: float) -> np.ndarray:
        i = next(rows)
        ratio = float(table.sigma[i])
        # In the scale of alpha = 1: x / alpha = x_0 + ratio epsilon.
        alpha = state_levels(table, process)[i][0]
        x = given / table.input_scale[i]
        x0 = MU + S**2 / (S**2 + ratio**2) * (x / alpha - MU)
        return (x0 - table.p[i] * x) / table.q[i]  # what the row makes x_0 of

    return network


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_levels_are_those_of_the_process(process: AnyProcess) -> None:
    """alpha and sigma before each row: one of the process' own points, and clean at the end."""
    table = SOLVERS["heun"](process, 9)
    levels = state_levels(table, process)
    assert levels.shape == (len(table) + 1, 2)
    assert levels[-1].tolist() == [1.0, 0.0]
    assert not levels.flags.writeable
    alphas, sigmas = levels[:-1].T
    np.testing.assert_allclose(sigmas[1:] / alphas[1:], table.sigma[1:], rtol=1e-12)
    if isinstance(process, (EDM, VESDE)):
        np.testing.assert_array_equal(alphas, 1.0)
    elif isinstance(process, FlowMatching):
        np.testing.assert_allclose(alphas + sigmas, 1.0, rtol=1e-12)
    elif isinstance(process, SubVPSDE):
        np.testing.assert_allclose(alphas**2 + sigmas, 1.0, rtol=1e-9)
    else:
        np.testing.assert_allclose(alphas**2 + sigmas**2, 1.0, rtol=1e-12)


def test_levels_of_a_state_in_another_scale() -> None:
    """A table that keeps x / alpha scales the network's input by alpha: its levels are alpha 1 and sigma / alpha."""
    schedule = NoiseSchedule()
    table = SOLVERS["euler"](schedule, 6)
    alphas = state_levels(table, schedule)[:-1, 0]
    levels = state_levels(dataclasses.replace(table, input_scale=alphas), schedule)
    np.testing.assert_allclose(levels[:-1, 0], 1.0, rtol=1e-12)
    np.testing.assert_allclose(levels[:-1, 1], table.sigma, rtol=1e-12)


def test_a_table_that_does_not_know_its_levels_is_refused() -> None:
    table = dataclasses.replace(SOLVERS["euler"](NoiseSchedule(), 6), sigma=np.array(np.nan))
    with refused(ConfigError, "solver", "euler"):
        state_levels(table, NoiseSchedule())


def test_what_leaves_nothing_is_refused() -> None:
    for name in ("ddim", "dpm++2m", "heun"):
        with refused(ConfigError, "begin_index", 7):
            SOLVERS[name](NoiseSchedule(), 7, begin_index=7)
    with refused(ConfigError, "solver euler: begin_index", -1):
        SOLVERS["euler"](NoiseSchedule(), 7, begin_index=-1)
    with refused(ConfigError, "solver", "dpm++2m"):
        cut(SOLVERS["dpm++2m"](NoiseSchedule(), 7), 3)
