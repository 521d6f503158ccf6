"""Tables that run the other way, from an image to the noise that a solver draws it from.

`inverted` undoes a solver without noise and history row by row (DDIM inversion: Song et al. 2021, arXiv:2010.02502,
section 4.3; Dhariwal & Nichol 2021, appendix F). A row of such a solver is

    x' = A x + B F(x; t)                so that        x = (x' - B F(x; t)) / A

which says x by itself. One iteration asks the network with x' in its place, at the time of x: diffusers'
DDIMInverseScheduler. More of them put its answer in again (Pan et al. 2023, arXiv:2309.04907), until the row is undone
to rounding; an iteration is a network evaluation.

`flow_up` integrates the probability flow upwards by Heun's method instead (Song et al. 2021, arXiv:2011.13456, section
4.3): of second order, and no solver's inverse.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastgen_kernels.reverse_step import row

from ..errors import ConfigError
from .euler import HEUN, HeunOptions
from .jumps import beginnings
from .processes import AnyProcess
from .runge_kutta import runge_kutta_step
from .sigmas import sigma_points
from .solvers import SOLVERS
from .table import F, H, Table, TableBuilder, X

SMALLEST = 1e-6  # of A: below it a row's result says nothing of where it came from


@lru_cache(maxsize=64)
def inverted(table: Table, iterations: int) -> Table:
    """The table that undoes `table`: from its last state to its first. iterations: of each row, 1 at least.

    A last row that does not look at x (the clean estimate of a network that predicts x_0) is left out: it starts at the
    level before it with the image as it is. Raises ConfigError for a solver with noise, history, or a clip of x_0.
    """
    if table.stochastic or len(beginnings(table)) < len(table) or table.adjusted:
        raise ConfigError(
            f"{table.name} with these options adds noise, or looks back at earlier rows, and cannot be undone row by "
            "row; take ddim, euler or heun",
            argument="solver",
        )
    if np.isfinite(table.clip).any():
        raise ConfigError("what a clip has taken is gone; use clip_sample=False", argument="clip_sample")
    kept = table.a[:, row.X] + table.a[:, row.X0] * table.p  # A
    of_output = table.a[:, row.F] + table.a[:, row.X0] * table.q  # B
    rows = TableBuilder(f"{table.name} inverted")
    for i in range(len(table) - 1, -1, -1):
        if abs(kept[i]) < SMALLEST:
            if i == len(table) - 1 and len(table) > 1:
                continue
            raise ConfigError(
                f"row {i} of {table.name} does not look at the state, and cannot be undone", argument="solver"
            )
        for k in range(iterations):
            before = X if k == 0 else H[0]
            keep = k == 0 and iterations > 1
            rows.add(
                float(table.time[i]),
                (0.0, 0.0),
                before / kept[i] - of_output[i] / kept[i] * F,
                slot=0 if keep else -1,
                history=X if keep else None,
                input_scale=float(table.input_scale[i]),
                gradient=float(table.gradient[i]),
                sigma=float(table.sigma[i]),
            )
    return rows.table()


@lru_cache(maxsize=64)
def flow_up(process: AnyProcess, steps: int, iterations: int) -> Table:
    """The probability flow from a clean image up to the first level of `heun`, by Heun's method.

    The first step, from no noise at all, where the flow has no slope, undoes Euler's last step as `inverted` does.
    """
    points = sigma_points(process, steps, HeunOptions())
    rows = TableBuilder("heun upwards")
    lowest = points.starts[-1]
    p, q = lowest.x0
    if abs(p) >= SMALLEST:
        for k in range(iterations):
            keep = k == 0 and iterations > 1
            rows.add(
                lowest.time,
                (0.0, 0.0),
                (X if k == 0 else H[0]) / p - q / p * F,
                slot=0 if keep else -1,
                history=X if keep else None,
                input_scale=lowest.input_scale,
                gradient=0.0,
                sigma=lowest.sigma / lowest.alpha if lowest.alpha else np.inf,
            )
    for after, now in zip(points.starts[-2::-1], points.starts[:0:-1], strict=True):
        runge_kutta_step(rows, (now, after), after, HEUN, clipped=False)
    return rows.table()


def encoder(
    solver: str,
    process: AnyProcess,
    steps: int,
    iterations: int,
    options: tuple[tuple[str, object], ...] = (),
) -> tuple[Table, Table]:
    """(the table that encodes, the table that decodes what it leaves). Raises ConfigError.

    solver: ddim, euler, heun, or another whose rows can be undone. options: of the solver.
    """
    down = _decoder(solver, process, steps, options)
    if solver == "heun" and not dict(options):
        return flow_up(process, steps, iterations), down
    return inverted(down, iterations), down


@lru_cache(maxsize=64)
def _decoder(solver: str, process: AnyProcess, steps: int, options: tuple[tuple[str, object], ...]) -> Table:
    chosen = dict(options)
    if any(option.name == "clip_sample" and option.default for option in SOLVERS[solver].options):
        chosen.setdefault("clip_sample", False)
    return SOLVERS[solver](process, steps, **chosen)
