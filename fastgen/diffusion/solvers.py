"""The solvers, by the names users choose them with, and the one door through which they are built.

    table = solver_table("dpm++2m", schedule, steps=20, solver_type="heun")

A solver is a function that writes a :class:`~fastgen.diffusion.table.Table`; its options are a dataclass, so
that unknown or absurd ones are errors that name the known ones, and a command line can list them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import from_dict
from ..errors import ConfigError
from .continuous import ContinuousProcess
from .given import given_count
from .processes import AnyProcess
from .schedule import NoiseSchedule
from .sde import SDE
from .table import Table


@dataclass(frozen=True)
class Option:
    """What a user may set: the name, its type's name, the default, and the allowed values in words."""

    name: str
    type: str
    default: Any
    allowed: str


@dataclass(frozen=True)
class Solver:
    """A named way to write a table. Call it: ``solver(schedule, steps, **options) -> Table``.

    writer, options_class: a function and a dataclass, as "module.name" in this package, whose module is imported when
    the solver is used: the option classes of all of them take longer to make than a small model takes to load.
    discrete: it needs the timesteps of a NoiseSchedule; sde: it needs one of Song's SDEs; else it takes any process.
    """

    name: str
    paper: str
    writer: str
    options_class: str
    discrete: bool = False
    sde: bool = False

    @functools.cached_property
    def write(self) -> Callable[[Any, int, Any], Table]:
        """The function that writes the table, of a schedule, the number of steps and options of `options_type`."""
        return _named(self.writer)

    @functools.cached_property
    def options_type(self) -> type:
        """The dataclass of its options."""
        return _named(self.options_class)

    def __call__(self, schedule: AnyProcess, steps: int | None = None, **options: Any) -> Table:
        """The table of `steps` steps, 1 to the process' limit; `len` of it is the number of network evaluations.

        steps: may be left out with timesteps or sigmas, whose number it is.

        Raises ConfigError (a ValueError) for steps or options that are unknown, wrongly typed, out of range,
        or make no sense on this schedule.
        """
        if self.discrete and isinstance(schedule, ContinuousProcess):
            others = ", ".join(s.name for s in SOLVERS.values() if not s.discrete and not s.sde)
            raise ConfigError(
                f"{self.name} steps between the timesteps of a NoiseSchedule, and this model's process is "
                f"{schedule.name}; take one of {others}",
                argument="solver",
            )
        if self.sde and not isinstance(schedule, SDE):
            kind = schedule.name if isinstance(schedule, ContinuousProcess) else "a NoiseSchedule"
            others = ", ".join(s.name for s in SOLVERS.values() if not s.sde)
            raise ConfigError(
                f"{self.name} solves the SDEs of Song et al. 2021 (vp_sde, subvp, ve), and this model's "
                f"process is {kind}; take one of {others}",
                argument="solver",
            )
        checked = self.check(options)
        given = given_count(checked)
        if given is not None and steps is None:
            steps = given[1]
        limit = schedule.steps_limit
        if type(steps) is not int or not 1 <= steps <= limit:
            named = "num_train_timesteps = " if isinstance(schedule, NoiseSchedule) else ""
            raise ConfigError(
                f"expected an int from 1 to {named}{limit}, got {type(steps).__name__} {steps!r}",
                argument="steps",
            )
        if given is not None and steps != given[1]:
            raise ConfigError(
                f"{given[0]} asks for {given[1]}, got {steps}; leave steps out", argument="steps"
            )
        if checked.begin_index >= steps:
            raise ConfigError(
                f"leaves nothing of {steps} steps: expected less, got {checked.begin_index}",
                argument="begin_index",
            )
        try:
            return self.write(schedule, steps, checked)
        except (
            ZeroDivisionError
        ) as error:  # as by Karras' formula with a tiny rho, whose last level rounds to 0
            raise ConfigError(
                "two of its noise levels are the same in float64, or one that must not be is 0: choose other levels "
                "(rho, sigma_min, sigma_max) or fewer steps",
                argument=f"solver {self.name}",
            ) from error

    def check(self, options: Mapping[str, Any]) -> Any:
        """The options as the solver's dataclass. ConfigError for what is unknown, wrongly typed or out of range."""
        where = f"solver {self.name}"
        checked: Any = from_dict(self.options_type, options, where)
        if getattr(checked, "as_diffusers", False):
            return from_dict(self.options_type, {**self.diffusers, **options}, where)
        return checked

    @property
    def diffusers(self) -> Mapping[str, Any]:
        """diffusers' defaults of the options that have another one here; what ``as_diffusers=True`` takes."""
        return getattr(self.options_type, "diffusers", {})

    def count(self, options: Mapping[str, Any]) -> int | None:
        """How many steps timesteps or sigmas among `options` ask for; None without. ConfigError as for `check`."""
        given = given_count(self.check(options))
        return None if given is None else given[1]

    @property
    def options(self) -> tuple[Option, ...]:
        """The declared options, in order."""
        hints = typing.get_type_hints(self.options_type)
        return tuple(
            Option(f.name, _type_name(hints[f.name]), f.default, _allowed(f.metadata, hints[f.name]))
            for f in dataclasses.fields(self.options_type)
        )


SOLVERS: dict[str, Solver] = {
    "ddpm": Solver(
        "ddpm", "Ho et al. 2020, arXiv:2006.11239", "ddpm.ddpm", "ddpm.DDPMOptions", discrete=True
    ),
    "ddim": Solver(
        "ddim", "Song et al. 2021, arXiv:2010.02502", "ddim.ddim", "ddim.DDIMOptions", discrete=True
    ),
    "dpm++2m": Solver(
        "dpm++2m",
        "Lu et al. 2022, arXiv:2211.01095",
        "dpm_multistep.dpmpp_2m",
        "dpm_multistep.MultistepOptions",
    ),
    "euler": Solver("euler", "Karras et al. 2022, arXiv:2206.00364", "euler.euler", "euler.EulerOptions"),
    "heun": Solver("heun", "Karras et al. 2022, arXiv:2206.00364", "euler.heun", "euler.HeunOptions"),
    "midpoint": Solver(
        "midpoint",
        "Runge 1895; Karras et al. 2022, arXiv:2206.00364",
        "runge_kutta.midpoint",
        "runge_kutta.RungeKuttaOptions",
    ),
    "rk4": Solver(
        "rk4",
        "Kutta 1901; Song et al. 2021, arXiv:2011.13456",
        "runge_kutta.rk4",
        "runge_kutta.RungeKuttaOptions",
    ),
    "euler_maruyama": Solver(
        "euler_maruyama",
        "Song et al. 2021, arXiv:2011.13456",
        "predictor_corrector.euler_maruyama",
        "predictor_corrector.EulerMaruyamaOptions",
        sde=True,
    ),
    "predictor_corrector": Solver(
        "predictor_corrector",
        "Song et al. 2021, arXiv:2011.13456",
        "predictor_corrector.predictor_corrector",
        "predictor_corrector.PredictorCorrectorOptions",
        sde=True,
    ),
    "euler_a": Solver(
        "euler_a", "Song et al. 2021, arXiv:2010.02502", "ancestral.euler_a", "ancestral.AncestralOptions"
    ),
    "dpm2": Solver(
        "dpm2", "Karras et al. 2022, arXiv:2206.00364", "runge_kutta.dpm2", "runge_kutta.RungeKuttaOptions"
    ),
    "dpm2_a": Solver(
        "dpm2_a", "Karras et al. 2022, arXiv:2206.00364", "ancestral.dpm2_a", "ancestral.DPM2AncestralOptions"
    ),
    "lms": Solver("lms", "Crowson 2022, github.com/crowsonkb/k-diffusion", "adams.lms", "adams.LMSOptions"),
    "dpm_multistep": Solver(
        "dpm_multistep",
        "Lu et al. 2022, arXiv:2206.00927",
        "dpm_multistep.dpm_multistep",
        "dpm_multistep.DPMMultistepOptions",
    ),
    "dpm++3m": Solver(
        "dpm++3m",
        "Lu et al. 2022, arXiv:2211.01095",
        "dpm_multistep.dpmpp_3m",
        "dpm_multistep.MultistepOptions",
    ),
    "dpm++2m_sde": Solver(
        "dpm++2m_sde",
        "Lu et al. 2022, arXiv:2211.01095",
        "dpm_multistep.dpmpp_2m_sde",
        "dpm_multistep.MultistepSDEOptions",
    ),
    "dpm++3m_sde": Solver(
        "dpm++3m_sde",
        "Crowson 2022, github.com/crowsonkb/k-diffusion",
        "dpm_multistep.dpmpp_3m_sde",
        "dpm_multistep.MultistepSDEOptions",
    ),
    "dpm_singlestep": Solver(
        "dpm_singlestep",
        "Lu et al. 2022, arXiv:2206.00927",
        "dpm_singlestep.dpm_singlestep",
        "dpm_singlestep.DPMSinglestepOptions",
    ),
    "dpm++2s": Solver(
        "dpm++2s",
        "Lu et al. 2022, arXiv:2211.01095",
        "dpm_singlestep.dpmpp_2s",
        "dpm_singlestep.SinglestepOptions",
    ),
    "dpm++3s": Solver(
        "dpm++3s",
        "Lu et al. 2022, arXiv:2211.01095",
        "dpm_singlestep.dpmpp_3s",
        "dpm_singlestep.SinglestepOptions",
    ),
    "dpm++2s_a": Solver(
        "dpm++2s_a", "Lu et al. 2022, arXiv:2211.01095", "ancestral.dpmpp_2s_a", "ancestral.AncestralOptions"
    ),
    "dpm++sde": Solver(
        "dpm++sde",
        "Crowson 2022, github.com/crowsonkb/k-diffusion",
        "ancestral.dpmpp_sde",
        "ancestral.AncestralOptions",
    ),
    "unipc": Solver("unipc", "Zhao et al. 2023, arXiv:2302.04867", "adams.unipc", "adams.UniPCOptions"),
    "deis": Solver("deis", "Zhang & Chen 2022, arXiv:2204.13902", "adams.deis", "adams.DEISOptions"),
    "plms": Solver(
        "plms", "Liu et al. 2022, arXiv:2202.09778", "pndm.plms", "pndm.PLMSOptions", discrete=True
    ),
    "pndm": Solver(
        "pndm", "Liu et al. 2022, arXiv:2202.09778", "pndm.pndm", "pndm.PNDMOptions", discrete=True
    ),
    "ipndm": Solver("ipndm", "Zhang & Chen 2022, arXiv:2204.13902", "adams.ipndm", "adams.IPNDMOptions"),
    "sa": Solver("sa", "Xue et al. 2023, arXiv:2309.05019", "adams.sa_solver", "adams.SAOptions"),
    "lcm": Solver(
        "lcm", "Luo et al. 2023, arXiv:2310.04378", "distilled.lcm", "distilled.LCMOptions", discrete=True
    ),
    "tcd": Solver(
        "tcd", "Zheng et al. 2024, arXiv:2402.19159", "distilled.tcd", "distilled.TCDOptions", discrete=True
    ),
    "consistency": Solver(
        "consistency",
        "Song et al. 2023, arXiv:2303.01469",
        "distilled.consistency",
        "distilled.ConsistencyOptions",
    ),
}


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def solver_table(name: str, schedule: AnyProcess, steps: int | None = None, **options: Any) -> Table:
    """The table of solver `name` on `schedule` with `steps` steps; see `Solver`. ConfigError if unknown."""
    if name not in SOLVERS:
        raise ConfigError(f"expected one of {', '.join(SOLVERS)}, got {name!r}", argument="solver")
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
