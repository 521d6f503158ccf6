"""Tables cut where a run can begin, and run back and forth: what image to image and RePaint make of a solver's rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from fastgen_kernels.reverse_step import row

from ..errors import ConfigError
from .levels import state_levels
from .processes import AnyProcess
from .table import LEARNED_NONE, Table

MOST_ROWS = (
    4  # of a step, those of the classical Runge-Kutta method: longer ones are of a method that looks back
)
COLUMNS = (
    *("time", "input_scale", "p", "q", "clip", "slot", "a", "b", "log2_std"),
    *("threshold", "langevin", "gradient", "sigma"),
)


def beginnings(table: Table) -> list[int]:
    """The rows at which a run can begin: those that need no history slot that an earlier row has written."""
    needed: set[int] = set()
    found: list[int] = []
    for i in range(len(table) - 1, -1, -1):
        slot = int(table.slot[i])
        read = set(np.flatnonzero(table.a[i, row.H :]).tolist())
        if slot >= 0:
            read |= set(np.flatnonzero(table.b[i, row.H :]).tolist())
        needed = (needed - {slot}) | read
        if not needed:
            found.append(i)
    return found[::-1]


@lru_cache(maxsize=64)
def cut(table: Table, first: int) -> Table:
    """`table` without the rows before `first`. ConfigError where that row builds on earlier ones."""
    if first not in beginnings(table):
        raise ConfigError(
            f"row {first} of the table {table.name} builds on rows before it, and cannot begin a run; take a solver "
            "by its name",
            argument="solver",
        )
    return _take(table, np.arange(first, len(table)))


@lru_cache(maxsize=64)
def with_jumps(
    table: Table, process: AnyProcess, jump_length: int, resamples: int, *, looks_back: bool = False
) -> Table:
    """RePaint's run (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1).

    Whenever `jump_length` more steps are done, noise takes the state back to where they began,

        x_t = (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t sigma_s / alpha_s)^2) z

    and they are done again, `resamples` times in all. The noise is that of the row before, which is then x_s itself, so
    that a jump costs no evaluation of the network.

    looks_back: whether the table is known to be that of a multistep method, which a short one does not show.

    Raises ConfigError for a solver that looks back at earlier steps, or whose noise has a spread that is only known
    when the network has answered.
    """
    levels, starts = state_levels(table, process), beginnings(table)
    ends = [*starts[1:], len(table)]
    if looks_back or max(np.subtract(ends, starts)) > MOST_ROWS:
        raise ConfigError(
            f"{table.name} looks back at steps before, which a jump makes worthless; take a solver that does not, as "
            "ddim, ddpm, euler_a or heun, or method=replace",
            argument="solver",
        )
    if jump_length >= len(starts):
        raise ConfigError(
            f"expected less than the {len(starts)} steps of the run, got {jump_length}",
            argument="jump_length",
        )
    order, jumps = _walk(len(starts), jump_length, resamples)
    taken: list[int] = []
    a: list[np.ndarray] = []
    for step, target in zip(order, jumps, strict=True):
        for i in range(starts[step], ends[step]):
            taken.append(i)
            a.append(table.a[i])
        if target is not None:
            i = ends[step] - 1
            if table.learned != LEARNED_NONE or table.langevin[i]:
                raise ConfigError(
                    f"the noise of {table.name} is scaled by what the network says, which that of a jump must not be; "
                    "take ddim with eta=1",
                    argument="solver",
                )
            a[-1] = _noised(a[-1], levels[i + 1], levels[starts[target]])
    return dataclasses.replace(_take(table, np.array(taken)), a=np.array(a))


def looks_back(make: Callable[[int], Table], steps: int) -> bool:
    """Whether a solver, whose table of some steps `make` gives, builds on the steps before: seen in a long run of it.

    A short run may be all start and end, whose order is lower. False where no longer run can be made.
    """
    try:
        longer = make(max(4 * MOST_ROWS, 2 * steps))
    except ConfigError:
        return False
    starts = beginnings(longer)
    return bool(max(np.subtract([*starts[1:], len(longer)], starts)) > MOST_ROWS)


def _walk(steps: int, jump_length: int, resamples: int) -> tuple[list[int], list[int | None]]:
    """The steps in the order they are done, and after each of them the step to go back to, if any."""
    # As in the authors' code: from every jump_length steps before the end, but for the noisiest.
    left = {steps - before: resamples - 1 for before in range(0, steps - jump_length, jump_length)}
    order: list[int] = []
    jumps: list[int | None] = []
    done = 0
    while done < steps:
        order.append(done)
        done += 1
        back = None
        if left.get(done, 0):
            left[done] -= 1
            done -= jump_length
            back = done
        jumps.append(back)
    return order, jumps


def _noised(x: np.ndarray, now: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The coefficients of a state x at the level `now`, noised to `end`."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = now, end
    kept = alpha_t / alpha_s
    own = kept * x
    # Two independent noises are one, whose variance is their sum.
    added = max(sigma_t**2 - (kept * sigma_s) ** 2, 0.0)
    own[row.Z] = math.hypot(own[row.Z], math.sqrt(added))
    return own


def _take(table: Table, rows: np.ndarray) -> Table:
    """A table of these rows, in this order, each with noise of its own."""
    columns = {name: getattr(table, name)[rows] for name in COLUMNS}
    return dataclasses.replace(table, **{**columns, "noise_step": np.arange(len(rows))})
