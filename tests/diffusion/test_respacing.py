"""guided-diffusion's timestep_respacing, by its documented examples and against its definition of a shorter chain."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen.diffusion import NoiseSchedule, solver_table
from fastgen.diffusion.timesteps import respaced
from fastgen.errors import ConfigError
from tests.refusals import refused


def test_examples() -> None:
    # The original's own: sections of 100 timesteps out of 300, strided to 10, 15 and 20.
    taken = respaced(300, "10,15,20")
    counts = [int(((taken >= low) & (taken < low + 100)).sum()) for low in (0, 100, 200)]
    assert counts == [10, 15, 20]
    assert {0, 99, 100, 199, 200, 299} <= set(taken.tolist())  # each section with both its ends
    assert np.all(np.diff(taken) < 0)
    np.testing.assert_array_equal(respaced(1000, "ddim25"), np.arange(0, 1000, 40)[::-1])
    np.testing.assert_array_equal(respaced(4000, "ddim250"), np.arange(0, 4000, 16)[::-1])
    np.testing.assert_array_equal(respaced(1000, "1000"), np.arange(1000)[::-1])
    np.testing.assert_array_equal(
        respaced(1000, "5"), [999, 749, 500, 250, 0]
    )  # 249.75 and 499.5, rounded to even
    np.testing.assert_array_equal(respaced(10, "1"), [0])
    np.testing.assert_array_equal(respaced(10, "2,2,1"), [7, 6, 4, 3, 0])  # sections of 4, 3, 3 timesteps


@pytest.mark.parametrize("respacing", ["50", "10,20,20", "ddim50"])
def test_a_shorter_chain_of_its_own(respacing: str) -> None:
    """The original makes new betas, 1 - alpha_bar_t / alpha_bar_s, and runs the whole chain of those."""
    schedule = NoiseSchedule(beta_schedule="squaredcos_cap_v2")
    visited = respaced(1000, respacing)
    bars = schedule.alphas_cumprod[visited[::-1]]
    betas = 1.0 - bars / np.append(1.0, bars[:-1])
    shorter = NoiseSchedule(num_train_timesteps=50, trained_betas=tuple(betas))
    for name, options in (("ddpm", {"variance_type": "learned_range"}), ("ddim", {"eta": 0.5})):
        ours = solver_table(name, schedule, 50, timestep_respacing=respacing, **options)
        theirs = solver_table(name, shorter, 50, **options)
        np.testing.assert_array_equal(ours.time, visited)
        for column in ("p", "q", "a", "log2_std"):
            np.testing.assert_allclose(getattr(ours, column), getattr(theirs, column), rtol=1e-9, atol=1e-12)


def test_it_takes_the_place_of_spacing() -> None:
    table = solver_table(
        "ddim", NoiseSchedule(), 25, timestep_respacing="ddim25", steps_offset=1, constant_stride=True
    )
    np.testing.assert_array_equal(table.time, np.arange(0, 1000, 40)[::-1])


@pytest.mark.parametrize(
    ("respacing", "about"),
    [
        ("", ("timestep_respacing",)),
        ("ddim", ("timestep_respacing",)),
        ("10, 20", ("timestep_respacing",)),
        ("-5", ("timestep_respacing",)),
        ("1e3", ("timestep_respacing",)),
        ("0", ("timestep_respacing", "1000")),
        ("1001", ("timestep_respacing", "1000")),
        ("10,600", ("timestep_respacing", "500")),
        ("ddim999", ("timestep_respacing",)),
        ("ddim0", ("timestep_respacing",)),
        (",".join(["1"] * 1001), ("timestep_respacing",)),
    ],
)
def test_refusals(respacing: str, about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        respaced(1000, respacing)


def test_steps_must_agree() -> None:
    with refused(ConfigError, "steps", "25", "20"):
        solver_table("ddpm", NoiseSchedule(), 20, timestep_respacing="ddim25")
