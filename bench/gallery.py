"""What every solver draws in few steps and in many: one sheet, the same seeds, labels and guidance everywhere.

    python -m bench.gallery --out docs/images/gallery.png
    python -m bench.gallery --solvers ddim dpm++2m unipc --steps 2,5,10 --out few.png

A row per solver with its default options, a column per number of steps. Where the defaults suit this model badly, a
second row has better ones. All samples of the sheet share the engine's batches.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import fastgen
from fastgen.diffusion import SOLVERS, Table
from fastgen.errors import FastgenError
from fastgen.images import save_grid

MODEL = "zoo:ddpm-mnist"
STEPS = (5, 10, 20, 50)
LABELS = (2, 3, 5, 8)  # a digit each in every cell
SEED = 0  # of the first digit; the next ones have the next
GUIDANCE = 1.5  # the model's own default
SCALE = 2  # four digits by four columns are then as wide as a page of documentation
DISTILLED = ("lcm", "tcd", "consistency")
FOR_DISTILLED = "for networks distilled to answer with the clean sample at once; this one is not"
# Steps even in log-SNR, for methods that combine slopes at both ends of a step in sigma: the first of 10 linspace steps
# on this model's cosine schedule goes from sigma = 20291 to 6, and that ratio magnifies what the two differ by.
SECOND_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "heun": ("heun (log-SNR)", {"use_lu_lambdas": True}),
    "rk4": ("rk4 (log-SNR)", {"use_lu_lambdas": True}),
}


@dataclass(frozen=True)
class Cell:
    """A row's `title`, a column's `steps`, and the table that draws the digits."""

    title: str
    steps: int
    table: Table

    @property
    def caption(self) -> str:
        """With the number of network evaluations where it is not that of steps."""
        evaluations = len(self.table)
        return f"{self.title}, {self.steps} steps" + (
            "" if evaluations == self.steps else f" ({evaluations} evaluations)"
        )


def plan(
    engine: fastgen.DiffusionEngine, solvers: Sequence[str], steps: Sequence[int]
) -> tuple[list[Cell], dict[str, str]]:
    """The cells, row by row, and why a solver is left out: it is for distilled models, or refuses one of the cells."""
    cells: list[Cell] = []
    left_out: dict[str, str] = {}
    for solver in solvers:
        if solver in DISTILLED:
            left_out[solver] = FOR_DISTILLED
            continue
        rows: list[tuple[str, dict[str, Any]]] = [(solver, {})]
        if solver in SECOND_ROWS:
            rows.append(SECOND_ROWS[solver])
        try:
            cells += [
                Cell(title, count, engine.request(1, solver=solver, steps=count, **options).plans[0].table)
                for title, options in rows
                for count in steps
            ]
        except FastgenError as error:
            left_out[solver] = str(error)
    return cells, left_out


def draw(engine: fastgen.DiffusionEngine, cells: Sequence[Cell], progress: bool = False) -> Tensor:
    """float32 [len(cells), 1, 28, 28 * len(LABELS)] in [-1, 1]: the digits of each cell, side by side."""
    each = list(itertools.product(cells, enumerate(LABELS)))
    images = engine.sample(
        seeds=[SEED + place for _, (place, _) in each],
        labels=[label for _, (_, label) in each],
        solver=[cell.table for cell, _ in each],
        guidance_scale=GUIDANCE,
        progress=progress,
    )
    # From [cell, digit, channel, row, column] to the columns of all digits in one row.
    return images.unflatten(0, (len(cells), len(LABELS))).permute(0, 2, 3, 1, 4).flatten(3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the sheet; say on standard output what is left out, and why. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), metavar="NAME")
    parser.add_argument("--steps", type=_counts, default=STEPS, metavar="5,10,20,50")
    parser.add_argument("--out", type=Path, default=Path("docs/images/gallery.png"))
    chosen = parser.parse_args(arguments)
    engine = fastgen.load(MODEL)
    cells, left_out = plan(engine, chosen.solvers, chosen.steps)
    for solver, reason in left_out.items():
        print(f"left out: {solver}: {reason}")
    if not cells:
        print("nothing to draw: no solver is left", file=sys.stderr)
        return 1
    images = draw(engine, cells, progress=sys.stderr.isatty())
    captions = [cell.caption for cell in cells]
    save_grid(images, chosen.out, columns=len(chosen.steps), captions=captions, scale=SCALE)
    print(f"{chosen.out}: {len(cells) // len(chosen.steps)} rows, {chosen.out.stat().st_size // 1024} KiB")
    return 0


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
