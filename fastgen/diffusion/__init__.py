"""The mathematics of diffusion, without networks: noise schedules, and solvers written as tables of rows."""

import importlib
from typing import TYPE_CHECKING, Any

from .edm import EDM
from .flow_matching import FlowMatching
from .interpreter import run
from .processes import PROCESSES, process_from_config
from .schedule import NoiseSchedule
from .sde import VESDE, VPSDE, SubVPSDE
from .solvers import SOLVERS, Option, Solver, solver_table
from .table import Table, TableBuilder, idle_row, pack
from .timesteps import timesteps

if TYPE_CHECKING:
    from ..converters import CompiledTable, compile_scheduler

__all__ = [
    "EDM",
    "PROCESSES",
    "SOLVERS",
    "VESDE",
    "VPSDE",
    "CompiledTable",
    "FlowMatching",
    "NoiseSchedule",
    "Option",
    "Solver",
    "SubVPSDE",
    "Table",
    "TableBuilder",
    "compile_scheduler",
    "idle_row",
    "pack",
    "process_from_config",
    "run",
    "solver_table",
    "timesteps",
]


def __getattr__(name: str) -> Any:
    """`CompiledTable` and `compile_scheduler` are in `fastgen.converters`; their old names here go on to work."""
    if name in ("CompiledTable", "compile_scheduler"):
        return getattr(importlib.import_module("fastgen.converters"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
