"""Measure how far every solver is from another way to compute it, and write the tables of docs/solvers.md.

python -m tests.diffusion.deviations              everything, minutes
python -m tests.diffusion.deviations options      the table of options only
python -m tests.diffusion.deviations lms heun     that table, and these solvers' rows of the other
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from fastgen.diffusion import SOLVERS

from . import golden_cases, golden_multistep, process_oracles, test_k_diffusion
from .golden import Measured

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"
# Solver name -> what measures it; where two modules have one, the first counts.
FAMILIES: tuple[dict[str, Callable[[], Measured]], ...] = (
    golden_cases.MEASURES,
    test_k_diffusion.MEASURES,
    golden_multistep.MEASURES,
    process_oracles.MEASURES,
)
HEADER = [
    "| solver | against | whole runs as a matrix | runs | trajectories, clipped | runs |",
    "|---|---|---|---|---|---|",
]


def options_table() -> str:
    """The declared options, as Markdown: a row for each that differs in type, default or range."""
    users: dict[tuple[str, str, str, str], list[str]] = {}
    for name, solver in SOLVERS.items():
        for option in solver.options:
            allowed = option.allowed.replace(" | ", ", ")
            users.setdefault((option.name, option.type, str(option.default), allowed), []).append(name)
    lines = ["| option | type | default | allowed | solvers |", "|---|---|---|---|---|"]
    places = {option[0]: place for place, option in reversed(list(enumerate(users)))}
    for option, names in sorted(users.items(), key=lambda row: places[row[0][0]]):
        cells = [f"`{option[0]}`", *option[1:], _named(names)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(names: list[str]) -> str:
    """The solvers in words."""
    others = [name for name in SOLVERS if name not in names]
    if not others:
        return "all"
    listed = ", ".join(f"`{name}`" for name in (names if len(names) <= len(others) else others))
    return listed if len(names) <= len(others) else f"all but {listed}"


def measured_row(name: str) -> str:
    """The largest deviations of solver `name` in float64, as a line of Markdown."""
    measure = next(family[name] for family in FAMILIES if name in family)
    found = measure()
    cells = [f"`{name}`", found.against]
    for deviations in (found.matrices, found.paths):
        cells += [f"{max(deviations):.1e}" if deviations else "-", str(len(deviations))]
    return "| " + " | ".join(cells) + " |"


def rows_of(table: str) -> dict[str, str]:
    """Solver name -> its line."""
    return {line.split("`")[1]: line for line in table.splitlines()[2:] if "`" in line}


def merged(old: str, new: dict[str, str]) -> str:
    """The table with the rows of `new` in place of its own, in the order of SOLVERS."""
    rows = rows_of(old) | new
    return "\n".join([*HEADER, *(rows[name] for name in SOLVERS if name in rows)])


def block(page: str, name: str) -> str:
    """The text between the markers of block `name`."""
    return _split(page, name)[1]


def replace_block(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of block `name`."""
    before, _, after = _split(page, name)
    return before + text + after


def _split(page: str, name: str) -> tuple[str, str, str]:
    found = re.fullmatch(rf"(.*<!-- {name} -->\n)(.*?)(\n<!-- end -->.*)", page, re.DOTALL)
    if found is None:
        raise ValueError(f"no block <!-- {name} --> ... <!-- end -->")
    return found.group(1), found.group(2), found.group(3)


def main() -> None:
    asked = sys.argv[1:]
    measured = {name for family in FAMILIES for name in family}
    wanted = [name for name in SOLVERS if name in measured and (not asked or name in asked)]
    rows = {name: measured_row(name) for name in wanted}
    page = PAGE.read_text()  # only now: measuring takes minutes, and the page may have changed meanwhile
    page = replace_block(page, "options", options_table())
    PAGE.write_text(replace_block(page, "deviations", merged(block(page, "deviations"), rows)))


if __name__ == "__main__":
    main()
