"""The mathematics of diffusion, without networks: noise schedules, and solvers written as tables of rows."""

from .compile import CompiledTable, compile_scheduler
from .edm import EDM
from .flow_matching import FlowMatching
from .interpreter import run
from .processes import PROCESSES, process_from_config
from .schedule import NoiseSchedule
from .sde import VESDE, VPSDE, SubVPSDE
from .solvers import SOLVERS, Option, Solver, solver_table
from .table import Table, TableBuilder, idle_row, pack
from .timesteps import timesteps

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
