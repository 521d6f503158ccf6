"""Midpoint and RK4 against straight loops, on every process."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastgen.diffusion import SOLVERS, NoiseSchedule, run
from fastgen.diffusion.sigmas import SigmaOptions, sigma_points

from .process_oracles import PROCESSES, SHAPE, deviation, network, tolerance


@pytest.mark.parametrize("steps", [1, 2, 7, 25])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["midpoint", "rk4"])
def test_continuous_processes(name: str, process: Any, steps: int) -> None:
    assert deviation(name, process, steps) <= tolerance(process, steps)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_noise_schedules(prediction: str) -> None:
    """RK4 in z = x / alpha on a discrete schedule: the same loop with the schedule's own conversions of F."""
    schedule = NoiseSchedule(prediction_type=prediction)
    options = SigmaOptions(use_karras_sigmas=True)
    levels = sigma_points(schedule, 8, options).levels

    def d(z: np.ndarray, w: float) -> np.ndarray:
        alpha = 1.0 / np.hypot(1.0, w)
        sigma = w * alpha
        out = network(alpha * z, float(schedule.times(np.array([w]))[0]))
        x0 = {
            "epsilon": z - w * out,
            "sample": out,
            "v_prediction": alpha * (alpha * z) - sigma * out,
        }[prediction]
        return (z - x0) / w

    table = SOLVERS["rk4"](schedule, 8, timestep_spacing="linspace", use_karras_sigmas=True)
    x = table.initial_scale * np.random.default_rng(0).normal(size=SHAPE)
    z = x * np.hypot(1.0, levels[0])
    for now, after in itertools.pairwise(levels):
        h = after - now
        k1 = d(z, now)
        if after == 0.0:
            z = z + h * k1
            break
        k2 = d(z + h / 2 * k1, now + h / 2)
        k3 = d(z + h / 2 * k2, now + h / 2)
        k4 = d(z + h * k3, after)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    # (z - x_0) / w in the loop loses w / w' of the rounding, at most 40 for these levels.
    got = run(table, network, x, [x] * len(table))
    assert np.abs(got - z).max() / np.abs(z).max() <= 1e-12


def test_evaluations_and_slots() -> None:
    for name, rows, slots in (("midpoint", 2 * 9 - 1, 1), ("rk4", 4 * 9 - 3, 2)):
        table = SOLVERS[name](NoiseSchedule(), 9)
        assert (len(table), table.slots, table.stochastic) == (rows, slots, False)
