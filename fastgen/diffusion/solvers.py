"""The solvers, by the names users choose them with, and the one door through which they are built.

    table = solver_table("dpm++2m", schedule, steps=20, solver_type="heun")

A solver is a function that writes a :class:`~fastgen.diffusion.table.Table`; its options are a dataclass, so
that unknown or absurd ones are errors that name the known ones, and a command line can list them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import from_dict
from ..errors import ConfigError
from .ddim import DDIMOptions, ddim
from .ddpm import DDPMOptions, ddpm
from .dpm import DPMSolverOptions, dpmpp_2m
from .euler import EulerOptions, HeunOptions, euler, heun
from .schedule import NoiseSchedule
from .table import Table

_NO_THRESHOLDING = (
    "dynamic thresholding needs a quantile of each sample and is not available; use clip_sample=True with "
    "clip_sample_range"
)
REFUSED = {
    "thresholding": _NO_THRESHOLDING,
    "dynamic_thresholding_ratio": _NO_THRESHOLDING,
    "sample_max_value": _NO_THRESHOLDING,
}


@dataclass(frozen=True)
class Option:
    """What a user may set: the name, its type's name, the default, and the allowed values in words."""

    name: str
    type: str
    default: Any
    allowed: str


@dataclass(frozen=True)
class Solver:
    """A named way to write a table. Call it: ``solver(schedule, steps, **options) -> Table``."""

    name: str
    paper: str
    options_type: type
    write: Callable[[NoiseSchedule, int, Any], Table]

    def __call__(self, schedule: NoiseSchedule, steps: int, **options: Any) -> Table:
        """The table of `steps` steps, 1 to T: a network evaluation each, but for heun's two.

        Raises ConfigError (a ValueError) for steps or options that are unknown, wrongly typed, out of range,
        or make no sense on this schedule.
        """
        limit = schedule.num_train_timesteps
        if type(steps) is not int or not 1 <= steps <= limit:
            raise ConfigError(
                f"steps: expected an int from 1 to num_train_timesteps = {limit}, "
                f"got {type(steps).__name__} {steps!r}"
            )
        return self.write(schedule, steps, self.check(options))

    def check(self, options: Mapping[str, Any]) -> Any:
        """The options as the solver's dataclass. ConfigError for what is unknown, wrongly typed or out of range."""
        for name in options:
            if name in REFUSED:
                raise ConfigError(f"solver {self.name}: {name}: {REFUSED[name]}")
        return from_dict(self.options_type, options, f"solver {self.name}")

    @property
    def options(self) -> tuple[Option, ...]:
        """The declared options, in order."""
        hints = typing.get_type_hints(self.options_type)
        return tuple(
            Option(f.name, _type_name(hints[f.name]), f.default, _allowed(f.metadata, hints[f.name]))
            for f in dataclasses.fields(self.options_type)
        )


SOLVERS: dict[str, Solver] = {
    "ddpm": Solver("ddpm", "Ho et al. 2020, arXiv:2006.11239", DDPMOptions, ddpm),
    "ddim": Solver("ddim", "Song et al. 2021, arXiv:2010.02502", DDIMOptions, ddim),
    "dpm++2m": Solver("dpm++2m", "Lu et al. 2022, arXiv:2211.01095", DPMSolverOptions, dpmpp_2m),
    "euler": Solver("euler", "Karras et al. 2022, arXiv:2206.00364", EulerOptions, euler),
    "heun": Solver("heun", "Karras et al. 2022, arXiv:2206.00364", HeunOptions, heun),
}


def solver_table(name: str, schedule: NoiseSchedule, steps: int, **options: Any) -> Table:
    """The table of solver `name` on `schedule` with `steps` evaluations; ConfigError if unknown."""
    if name not in SOLVERS:
        raise ConfigError(f"solver: expected one of {', '.join(SOLVERS)}, got {name!r}")
    return SOLVERS[name](schedule, steps, **options)


def _type_name(hint: Any) -> str:
    """float, or float or None for an optional one."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace(" | ", " or ")


def _allowed(rules: typing.Mapping[str, Any], hint: type) -> str:
    if "choices" in rules:
        return " | ".join(rules["choices"])
    if "low" in rules:
        return f"{rules['low']} to {rules['high']}"
    return "True | False" if hint is bool else "any"
