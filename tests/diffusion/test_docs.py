"""docs/solvers.md says what the code does."""

from __future__ import annotations

from fastgen.diffusion import SOLVERS

from .deviations import PAGE, block, options_table, rows_of
from .golden import TOLERANCE

REFRESH = "run: python -m tests.diffusion.deviations"


def test_options_are_current() -> None:
    assert block(PAGE.read_text(), "options") == options_table(), REFRESH


def test_every_solver_has_a_paper_and_a_measured_deviation() -> None:
    page = PAGE.read_text()
    rows = rows_of(block(page, "deviations"))
    assert rows.keys() == SOLVERS.keys(), REFRESH
    for row in rows.values():
        _, _, matrix, runs, path, paths = (cell.strip() for cell in row.strip("|").split("|"))
        assert int(runs) + int(paths) > 0, row
        assert max(float(found) for found in (matrix, path) if found != "-") <= TOLERANCE, row
    described = page.split("<!-- options -->")[0]
    for name, solver in SOLVERS.items():
        assert f"| `{name}` |" in described, name
        assert solver.paper in page, solver.paper
