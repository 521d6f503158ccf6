"""The mathematics of diffusion, without networks: noise schedules, and solvers written as tables of rows."""

from .schedule import NoiseSchedule
from .solvers import SOLVERS, Option, Solver, solver_table
from .table import Table, TableBuilder, idle_row, pack, run
from .timesteps import timesteps

__all__ = [
    "SOLVERS",
    "NoiseSchedule",
    "Option",
    "Solver",
    "Table",
    "TableBuilder",
    "idle_row",
    "pack",
    "run",
    "solver_table",
    "timesteps",
]
