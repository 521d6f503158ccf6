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
from .adams import (
    DEISOptions,
    IPNDMOptions,
    LMSOptions,
    SAOptions,
    UniPCOptions,
    deis,
    ipndm,
    lms,
    sa_solver,
    unipc,
)
from .ancestral import AncestralOptions, DPM2AncestralOptions, dpm2_a, dpmpp_2s_a, dpmpp_sde, euler_a
from .continuous import ContinuousProcess
from .ddim import DDIMOptions, ddim
from .ddpm import DDPMOptions, ddpm
from .distilled import ConsistencyOptions, LCMOptions, TCDOptions, consistency, lcm, tcd
from .dpm_multistep import (
    DPMMultistepOptions,
    MultistepOptions,
    MultistepSDEOptions,
    dpm_multistep,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
)
from .dpm_singlestep import DPMSinglestepOptions, SinglestepOptions, dpm_singlestep, dpmpp_2s, dpmpp_3s
from .euler import EulerOptions, HeunOptions, euler, heun
from .given import given_count
from .pndm import PLMSOptions, PNDMOptions, plms, pndm
from .predictor_corrector import (
    EulerMaruyamaOptions,
    PredictorCorrectorOptions,
    euler_maruyama,
    predictor_corrector,
)
from .processes import AnyProcess
from .runge_kutta import RungeKuttaOptions, dpm2, midpoint, rk4
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

    discrete: it needs the timesteps of a NoiseSchedule; sde: it needs one of Song's SDEs; else it takes any process.
    """

    name: str
    paper: str
    options_type: type
    write: Callable[[Any, int, Any], Table]
    discrete: bool = False
    sde: bool = False

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
    "ddpm": Solver("ddpm", "Ho et al. 2020, arXiv:2006.11239", DDPMOptions, ddpm, discrete=True),
    "ddim": Solver("ddim", "Song et al. 2021, arXiv:2010.02502", DDIMOptions, ddim, discrete=True),
    "dpm++2m": Solver("dpm++2m", "Lu et al. 2022, arXiv:2211.01095", MultistepOptions, dpmpp_2m),
    "euler": Solver("euler", "Karras et al. 2022, arXiv:2206.00364", EulerOptions, euler),
    "heun": Solver("heun", "Karras et al. 2022, arXiv:2206.00364", HeunOptions, heun),
    "midpoint": Solver(
        "midpoint", "Runge 1895; Karras et al. 2022, arXiv:2206.00364", RungeKuttaOptions, midpoint
    ),
    "rk4": Solver("rk4", "Kutta 1901; Song et al. 2021, arXiv:2011.13456", RungeKuttaOptions, rk4),
    "euler_maruyama": Solver(
        "euler_maruyama", "Song et al. 2021, arXiv:2011.13456", EulerMaruyamaOptions, euler_maruyama, sde=True
    ),
    "predictor_corrector": Solver(
        "predictor_corrector",
        "Song et al. 2021, arXiv:2011.13456",
        PredictorCorrectorOptions,
        predictor_corrector,
        sde=True,
    ),
    "euler_a": Solver("euler_a", "Song et al. 2021, arXiv:2010.02502", AncestralOptions, euler_a),
    "dpm2": Solver("dpm2", "Karras et al. 2022, arXiv:2206.00364", RungeKuttaOptions, dpm2),
    "dpm2_a": Solver("dpm2_a", "Karras et al. 2022, arXiv:2206.00364", DPM2AncestralOptions, dpm2_a),
    "lms": Solver("lms", "Crowson 2022, github.com/crowsonkb/k-diffusion", LMSOptions, lms),
    "dpm_multistep": Solver(
        "dpm_multistep", "Lu et al. 2022, arXiv:2206.00927", DPMMultistepOptions, dpm_multistep
    ),
    "dpm++3m": Solver("dpm++3m", "Lu et al. 2022, arXiv:2211.01095", MultistepOptions, dpmpp_3m),
    "dpm++2m_sde": Solver(
        "dpm++2m_sde", "Lu et al. 2022, arXiv:2211.01095", MultistepSDEOptions, dpmpp_2m_sde
    ),
    "dpm++3m_sde": Solver(
        "dpm++3m_sde", "Crowson 2022, github.com/crowsonkb/k-diffusion", MultistepSDEOptions, dpmpp_3m_sde
    ),
    "dpm_singlestep": Solver(
        "dpm_singlestep", "Lu et al. 2022, arXiv:2206.00927", DPMSinglestepOptions, dpm_singlestep
    ),
    "dpm++2s": Solver("dpm++2s", "Lu et al. 2022, arXiv:2211.01095", SinglestepOptions, dpmpp_2s),
    "dpm++3s": Solver("dpm++3s", "Lu et al. 2022, arXiv:2211.01095", SinglestepOptions, dpmpp_3s),
    "dpm++2s_a": Solver("dpm++2s_a", "Lu et al. 2022, arXiv:2211.01095", AncestralOptions, dpmpp_2s_a),
    "dpm++sde": Solver(
        "dpm++sde", "Crowson 2022, github.com/crowsonkb/k-diffusion", AncestralOptions, dpmpp_sde
    ),
    "unipc": Solver("unipc", "Zhao et al. 2023, arXiv:2302.04867", UniPCOptions, unipc),
    "deis": Solver("deis", "Zhang & Chen 2022, arXiv:2204.13902", DEISOptions, deis),
    "plms": Solver("plms", "Liu et al. 2022, arXiv:2202.09778", PLMSOptions, plms, discrete=True),
    "pndm": Solver("pndm", "Liu et al. 2022, arXiv:2202.09778", PNDMOptions, pndm, discrete=True),
    "ipndm": Solver("ipndm", "Zhang & Chen 2022, arXiv:2204.13902", IPNDMOptions, ipndm),
    "sa": Solver("sa", "Xue et al. 2023, arXiv:2309.05019", SAOptions, sa_solver),
    "lcm": Solver("lcm", "Luo et al. 2023, arXiv:2310.04378", LCMOptions, lcm, discrete=True),
    "tcd": Solver("tcd", "Zheng et al. 2024, arXiv:2402.19159", TCDOptions, tcd, discrete=True),
    "consistency": Solver(
        "consistency", "Song et al. 2023, arXiv:2303.01469", ConsistencyOptions, consistency
    ),
}


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
