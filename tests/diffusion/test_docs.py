"""docs/solvers.md says what the code does."""

from __future__ import annotations

from fastgen.diffusion import SOLVERS

from .deviations import PAGE, block, options_table
from .test_solvers_golden import TOLERANCE

REFRESH = "run: python -m tests.diffusion.deviations"


def test_options_are_current() -> None:
    assert block(PAGE.read_text(), "options") == options_table(), REFRESH


def test_every_solver_has_a_paper_and_a_measured_deviation() -> None:
    page = PAGE.read_text()
    measured = {}
    for line in block(page, "deviations").splitlines()[2:]:
        name, matrix, _, path, _ = (cell.strip(" `") for cell in line.strip("|").split("|"))
        measured[name] = max(float(matrix), float(path))
    assert measured.keys() == SOLVERS.keys(), REFRESH
    assert max(measured.values()) <= TOLERANCE
    for solver in SOLVERS.values():
        assert solver.paper in page
