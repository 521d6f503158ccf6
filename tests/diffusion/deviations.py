"""Measure how far every solver is from diffusers, and write the tables of docs/solvers.md.

python -m tests.diffusion.deviations
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np

from fastgen.diffusion import SOLVERS, NoiseSchedule

from .diffusers_oracle import deviation
from .test_solvers_golden import (
    OPTIONS,
    PATH_STEPS,
    PATHS,
    PREDICTIONS,
    SCHEDULES,
    SPACINGS,
    TOLERANCE,
    matrix_deviation,
    tolerance,
    trajectories,
)

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"
STEPS = (1, 2, 7, 50)


def options_table() -> str:
    """The declared options of every solver, as Markdown."""
    lines = ["| solver | option | type | default | allowed |", "|---|---|---|---|---|"]
    for name, solver in SOLVERS.items():
        for option in solver.options:
            allowed = option.allowed.replace(" | ", ", ")
            lines.append(f"| `{name}` | `{option.name}` | {option.type} | {option.default} | {allowed} |")
    return "\n".join(lines)


def deviations_table() -> str:
    """The largest deviations from diffusers in float64, as Markdown."""
    lines = [
        "| solver | whole runs as a matrix | runs | trajectories, clipped | runs |",
        "|---|---|---|---|---|",
    ]
    for name in SOLVERS:
        matrices = [
            matrix_deviation(
                name,
                NoiseSchedule(prediction_type=prediction, **schedule),
                steps,
                timestep_spacing=spacing,
                **o,
            )
            for prediction, schedule, spacing, steps in itertools.product(
                PREDICTIONS, SCHEDULES.values(), SPACINGS, STEPS
            )
            for o in OPTIONS[name]
            if tolerance(
                name,
                NoiseSchedule(prediction_type=prediction, **schedule),
                steps,
                timestep_spacing=spacing,
                **o,
            )
            == TOLERANCE
        ]
        paths = []
        for (path, options), prediction, spacing, steps in itertools.product(
            PATHS, PREDICTIONS, SPACINGS, PATH_STEPS
        ):
            schedule = NoiseSchedule(prediction_type=prediction, **SCHEDULES["scaled"])
            chosen = {"timestep_spacing": spacing, "clip_sample": True, **options}
            if path == name and tolerance(name, schedule, steps, **chosen) == TOLERANCE:
                paths.append(deviation(*trajectories(name, schedule, steps, **chosen)))
        lines.append(
            f"| `{name}` | {np.max(matrices):.1e} | {len(matrices)} | {np.max(paths):.1e} | {len(paths)} |"
        )
    return "\n".join(lines)


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
    page = PAGE.read_text()
    for name, text in (("options", options_table()), ("deviations", deviations_table())):
        page = replace_block(page, name, text)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
