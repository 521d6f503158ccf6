"""What every solver draws in few steps and in many: one sheet, the same seeds, labels and guidance everywhere.

    python -m bench.gallery --out docs/images/gallery.png
    python -m bench.gallery --solvers ddim dpm++2m unipc --evaluations 2,5,10 --out few.png

A row per solver with its default options, a column per number of network evaluations: as many steps as fit into them.
All samples of the sheet share the engine's batches.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import fastgen
from fastgen.diffusion import SOLVERS, Table, solver_table
from fastgen.diffusion.processes import AnyProcess
from fastgen.errors import ConfigError, FastgenError
from fastgen.images import save_grid

MODEL = "zoo:ddpm-mnist"
EVALUATIONS = (5, 10, 20, 50)  # of the network, which are what a sample costs
LABELS = (2, 3, 5, 8)  # a digit each in every cell
SEED = 0  # of the first digit; the next ones have the next
GUIDANCE = 1.5  # the model's own default
SCALE = 2  # four digits by four columns are then as wide as a page of documentation
DISTILLED = ("lcm", "tcd", "consistency")
FOR_DISTILLED = "for networks distilled to answer with the clean sample at once; this one is not"


@dataclass(frozen=True)
class Cell:
    """A row's `title`, the `steps` that fit into a column's evaluations, and the table that draws the digits."""

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


def steps_for(solver: str, process: AnyProcess, evaluations: int) -> int:
    """The most steps that take at most so many network evaluations; the fewest steps there are if all take more.

    Raises ConfigError for a solver that refuses this process.
    """
    found, refusal = None, None
    for steps in range(1, evaluations + 1):
        try:
            rows = len(SOLVERS[solver](process, steps))
        except ConfigError as error:
            if error.argument != "steps":
                raise
            refusal = error
            continue
        if rows > evaluations and found is not None:
            break
        found = steps
        if rows > evaluations:
            break
    if found is None:
        assert refusal is not None
        raise refusal
    return found


def plan(
    engine: fastgen.DiffusionEngine, solvers: Sequence[str], evaluations: Sequence[int]
) -> tuple[list[Cell], dict[str, str]]:
    """The cells, row by row, and why a solver is left out: it is for distilled models, or refuses one of the cells."""
    process = engine.settings.noise_schedule
    cells: list[Cell] = []
    left_out: dict[str, str] = {}
    for solver in solvers:
        if solver in DISTILLED:
            left_out[solver] = FOR_DISTILLED
            continue
        try:
            for count in evaluations:
                steps = steps_for(solver, process, count)
                cells.append(Cell(solver, steps, solver_table(solver, process, steps)))
        except FastgenError as error:
            left_out[solver] = str(error)
            cells = [cell for cell in cells if cell.title != solver]
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
    parser.add_argument("--evaluations", type=_counts, default=EVALUATIONS, metavar="5,10,20,50")
    parser.add_argument("--out", type=Path, default=Path("docs/images/gallery.png"))
    chosen = parser.parse_args(arguments)
    engine = fastgen.load(MODEL)
    cells, left_out = plan(engine, chosen.solvers, chosen.evaluations)
    for solver, reason in left_out.items():
        print(f"left out: {solver}: {reason}")
    if not cells:
        print("nothing to draw: no solver is left", file=sys.stderr)
        return 1
    images = draw(engine, cells, progress=sys.stderr.isatty())
    captions = [cell.caption for cell in cells]
    save_grid(images, chosen.out, columns=len(chosen.evaluations), captions=captions, scale=SCALE)
    print(
        f"{chosen.out}: {len(cells) // len(chosen.evaluations)} rows, {chosen.out.stat().st_size // 1024} KiB"
    )
    return 0


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
