"""What every solver draws with nothing said, judged: the table of docs/solvers.md beside the gallery.

    python -m tests.zoo.agreement                     everything, about 40 minutes of one core
    python -m tests.zoo.agreement --solvers ddim heun --evaluations 10,20

A cell is how many of 100 digits of zoo:ddpm-mnist, ten of each label, `tests/zoo/judge.py` takes for the one asked for:
seeds 0 to 99, the model's own guidance, the solver's own options, as many steps as fit into the network evaluations.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

import fastgen
from bench.gallery import MODEL, steps_for
from fastgen.diffusion import SOLVERS, Table, solver_table
from tests.diffusion.deviations import block, replace_block

from . import judge

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"
COUNT = 100
EVALUATIONS = (10, 20, 50)
NAMES = tuple(name for name, solver in SOLVERS.items() if not solver.sde)
HEADER = ["| solver | 10 evaluations | 20 | 50 |", "|---|---|---|---|"]


@cache
def engine() -> fastgen.DiffusionEngine:
    """The model."""
    return fastgen.load(MODEL, device="cpu")


@cache
def table(name: str, evaluations: int) -> Table:
    """The solver's own table that fits into so many network evaluations."""
    process = engine().settings.noise_schedule
    return solver_table(name, process, steps_for(name, process, evaluations))


def agreement(name: str, evaluations: int) -> int:
    """Digits of `COUNT` that the judge takes for the label asked for. Counted once for solvers with the same rows."""
    rows = table(name, evaluations)
    return _agreement(next(n for n in NAMES if same(table(n, evaluations), rows)), evaluations)


@cache
def _agreement(name: str, evaluations: int) -> int:
    asked = np.arange(COUNT) % 10
    drawn = engine().sample(COUNT, seed=0, labels=asked.tolist(), solver=table(name, evaluations))
    images = (drawn[:, 0].double().clamp(-1.0, 1.0).numpy() + 1.0) / 2.0
    return int((judge.predict(images) == asked).sum())


def same(a: Table, b: Table) -> bool:
    """Whether two tables draw the same."""
    columns = [key for key, value in vars(a).items() if isinstance(value, np.ndarray)]
    return len(a) == len(b) and all(
        np.array_equal(getattr(a, k), getattr(b, k), equal_nan=True) for k in columns
    )


def cell(name: str, evaluations: int) -> str:
    """In Markdown, with the number of evaluations where no number of steps takes so few."""
    rows = len(table(name, evaluations))
    more = f" ({rows} evaluations)" if rows > evaluations else ""
    return f"{agreement(name, evaluations)} %{more}"


def rows_of(text: str) -> dict[str, list[str]]:
    """Solver name -> its cells."""
    found = re.findall(r"^\| `(.+?)` \| (.*) \|$", text, re.MULTILINE)
    return {name: [c.strip() for c in cells.split(" | ")] for name, cells in found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the cells measured into the page as they come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--solvers", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument(
        "--evaluations", type=lambda text: [int(n) for n in text.split(",")], default=EVALUATIONS
    )
    chosen = parser.parse_args(arguments)
    for evaluations in chosen.evaluations:
        for name in chosen.solvers:
            text = cell(name, evaluations)
            print(f"{name:15s} {evaluations:3d} {text}", flush=True)
            page = PAGE.read_text()
            rows = rows_of(block(page, "agreement"))
            rows.setdefault(name, ["-"] * len(EVALUATIONS))[EVALUATIONS.index(evaluations)] = text
            lines = [f"| `{n}` | " + " | ".join(rows[n]) + " |" for n in NAMES if n in rows]
            PAGE.write_text(replace_block(page, "agreement", "\n".join([*HEADER, *lines])))


if __name__ == "__main__":
    main()
