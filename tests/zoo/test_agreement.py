"""Solvers with nothing said draw what was asked for: an independent classifier says so."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen.diffusion import SOLVERS
from tests import real
from tests.diffusion.deviations import block

from . import agreement, judge, quality

ENOUGH = 95  # of 100 digits
# (solver, evaluations) -> what it reaches, and why no default of it can do better.
EXCEPTIONS: dict[tuple[str, int], tuple[int, str]] = {}


# All at 20 and 50 evaluations take 40 minutes of one core: `python -m tests.zoo.agreement` does that and records them
# in the page. These are solvers that drew worse with more steps, or noise, by earlier defaults.
CASES = [(name, 10) for name in agreement.NAMES] + [("ddim", 50), ("heun", 20), ("plms", 20)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "evaluations"), CASES)
def test_every_solver_draws_the_digits_asked_for(name: str, evaluations: int) -> None:
    wanted, _ = EXCEPTIONS.get((name, evaluations), (ENOUGH, ""))
    assert agreement.agreement(name, evaluations) >= wanted


def test_what_the_page_records_is_enough() -> None:
    """Every solver at 10, 20 and 50 evaluations, none left out."""
    rows = agreement.rows_of(block(agreement.PAGE.read_text(), "agreement"))
    assert rows.keys() == {name for name, solver in SOLVERS.items() if not solver.sde}
    for name, cells in rows.items():
        for evaluations, cell in zip(agreement.EVALUATIONS, cells, strict=True):
            wanted, _ = EXCEPTIONS.get((name, evaluations), (ENOUGH, ""))
            assert cell.endswith(" %"), (name, evaluations, "not measured, or in more evaluations")
            assert wanted <= int(cell.removesuffix(" %")) <= agreement.COUNT, (name, evaluations)


def test_runs_take_at_most_the_evaluations_of_their_column() -> None:
    for name in agreement.NAMES:
        for evaluations in agreement.EVALUATIONS:
            assert len(agreement.table(name, evaluations)) <= evaluations, (name, evaluations)


def test_the_judge_tells_a_digit_from_none() -> None:
    """Noise and blank sheets are no digit asked for, but by chance: one label or ten."""
    noise = np.random.default_rng(0).random((200, 28, 28))
    assert (judge.predict(noise) == np.arange(200) % 10).mean() < 0.3
    assert (judge.predict(np.zeros((200, 28, 28))) == np.arange(200) % 10).mean() == 0.1


@pytest.mark.real
def test_the_judge_knows_real_digits() -> None:
    images, labels = real.mnist()
    found = judge.predict(images[quality.HELD_OUT] / 255.0)
    assert (found == labels[quality.HELD_OUT]).mean() >= 0.965
