"""How one sample is drawn, whatever its seed and label: solver, steps, options, guidance; checked."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from ...config import named
from ...diffusion.processes import AnyProcess
from ...diffusion.solvers import SOLVERS, solver_table
from ...diffusion.table import LEARNED_NONE, LEARNED_VARIANCE, Table
from ...diffusion.table_json import table_from_dict, table_to_dict
from ...errors import ArgumentError, ConfigError
from ..arguments import as_index
from .guidance import WORDS as GUIDANCE
from .guidance import Guidance
from .settings import DiffusionSettings

COMMON = ("solver", "steps", *GUIDANCE)


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to draw a sample. `solver`: a name in SOLVERS, or a table."""

    solver: str | Table
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    guidance: Guidance = field(default_factory=Guidance)
    process: AnyProcess | None = None

    @cached_property
    def table(self) -> Table:
        """The solver's table; the same object for the same solver, so that it is uploaded once."""
        if isinstance(self.solver, Table):
            return self.solver
        assert self.process is not None
        options = tuple((name, type(value), value) for name, value in sorted(self.options.items()))
        return _table(self.solver, self.process, self.steps, options)

    @cached_property
    def weights(self) -> float | tuple[float, ...]:
        """Guidance weight, or one per row of the table."""
        return self.guidance.weights(self.table)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of ``sample`` that repeat it, as JSON types."""
        solver = table_to_dict(self.solver) if isinstance(self.solver, Table) else self.solver
        options = {n: list(v) if isinstance(v, tuple) else v for n, v in self.options.items()}
        return {"solver": solver, "steps": self.steps, **self.guidance.to_dict(), **options}

    def __str__(self) -> str:
        return f"{self.table.name} x {self.steps}"


@lru_cache(maxsize=256, typed=True)  # typed: 1 and True are equal keys, and not the same argument
def _table(solver: str, process: AnyProcess, steps: int, options: tuple[tuple[str, type, Any], ...]) -> Table:
    return solver_table(solver, process, steps, **{name: value for name, _, value in options})


@lru_cache(maxsize=64)
def _kept_table(text: str) -> Table:
    return table_from_dict(json.loads(text), "solver")


def _text(table: Mapping[str, Any]) -> str:
    try:
        return json.dumps(table)
    except (TypeError, ValueError) as error:  # an object that is no JSON; an integer of thousands of digits
        raise ConfigError(
            f"expected a name, a Table, or what table_to_dict writes: {error}", argument="solver"
        ) from None


def make_plan(settings: DiffusionSettings, arguments: Mapping[str, Any]) -> Plan:
    """Check one sample's arguments against a model's settings; None is the default. ConfigError, ArgumentError."""
    given = dict(arguments)
    solver, steps, eta = (given.pop(name, None) for name in ("solver", "steps", "eta"))
    guidance = Guidance.checked(settings.guidance_scale, *[given.pop(word, None) for word in GUIDANCE])
    options = {name: value for name, value in given.items() if value is not None}
    if eta is not None:
        options["eta"] = eta
    if isinstance(solver, Mapping):
        solver = _kept_table(_text(solver))
    if isinstance(solver, Table):
        plan = _of_table(solver, steps, options, guidance)
        solver.check_prediction(settings.noise_schedule.prediction_type)
    else:
        plan = _of_name(settings, solver, steps, options, guidance)
    _check_variance(plan.table, settings)
    if guidance.guides() and settings.null_class is None:
        raise ConfigError(
            "this model has no null class to be guided away from; leave it at 1 (no guidance)",
            argument="guidance_scale",
        )
    if guidance.classifier_scale and not plan.table.gradient.any():
        raise ConfigError(
            f"{plan.table.name} does not know what its network predicts, which classifier guidance "
            "needs; take a named solver",
            argument="classifier_scale",
        )
    plan.table.check_float32()
    if callable(guidance.scale):  # its values from here on: a request is plain data
        plan = dataclasses.replace(plan, guidance=dataclasses.replace(guidance, scale=_called(plan)))
    if guidance.guides() and plan.weights == 1.0 and guidance.bounded:
        warnings.warn(
            f"guidance_interval, guidance_sigmas, guidance_times: none of the {len(plan.table)} network evaluations of "
            f"{plan.table.name} lies within; nothing is guided",
            stacklevel=2,
        )
    _ = plan.weights
    return plan


def _called(plan: Plan) -> tuple[float, ...]:
    whole = dataclasses.replace(plan.guidance, interval=None, sigmas=None, times=None).weights(plan.table)
    return whole if isinstance(whole, tuple) else (whole,) * len(plan.table)


def _of_table(table: Table, steps: Any, options: Mapping[str, Any], guidance: Guidance) -> Plan:
    check_names(table, options)
    if steps is not None and as_index(steps) != len(table):
        raise ConfigError(
            f"the table {table.name} has {len(table)}, got {steps!r}; leave it out", argument="steps"
        )
    return Plan(table, len(table), {}, guidance)


def check_names(solver: Any, names: Iterable[str]) -> None:
    """ArgumentError for an argument that is neither one of ``sample`` nor an option of `solver`, a name or a table."""
    if isinstance(solver, (Table, Mapping)):
        known: list[str] = []
        takes = "a solver that is given as a table has its options in it"
    else:
        known = [option.name for option in SOLVERS[solver].options]
        takes = f"besides those of sample(), solver {solver} takes {', '.join(known)}"
    if unknown := sorted(set(names) - {*known, *COMMON}):
        raise ArgumentError(f"unknown argument; {takes}", argument=", ".join(map(named, unknown[:5])))


def _of_name(
    settings: DiffusionSettings, solver: Any, steps: Any, options: dict[str, Any], guidance: Guidance
) -> Plan:
    solver = settings.solver if solver is None else solver
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise ConfigError(
            f"expected one of {', '.join(SOLVERS)}, or a Table, got {solver!r}", argument="solver"
        )
    check_names(solver, options)
    offset = options.get("steps_offset")
    if solver == settings.solver:
        own = {name: value for name, value in (settings.solver_options or {}).items() if value is not None}
        options = {**own, **options}
    for name, value in options.items():
        listed = isinstance(value, (list, tuple))
        if listed:
            options[name] = value = tuple(value)  # can be looked up, as a list cannot
        if not all(isinstance(v, (bool, int, float, str)) for v in (value if listed else (value,))):
            raise ConfigError(
                f"expected a number, a truth value, a string, or a list of them, got {value!r}", argument=name
            )
    if settings.value_range is None and any(
        o.name == "clip_sample" and o.default for o in SOLVERS[solver].options
    ):
        options.setdefault("clip_sample", False)  # no images: nothing says where their values end
    if settings.learned and solver == "ddpm":
        options.setdefault("variance_type", settings.variance)
    if steps is None:
        count = SOLVERS[solver].count(options) if {"timesteps", "sigmas"} & options.keys() else None
        steps = settings.steps if count is None else count
    steps = as_index(steps)
    if type(steps) is not int:
        raise ConfigError(f"expected an int, got {steps!r}", argument="steps")
    plan = Plan(solver, steps, options, guidance, settings.noise_schedule)
    _ = plan.table  # checks steps and options
    if offset:
        _check_offset(solver, offset, options)
    return plan


def _check_offset(solver: str, offset: int, options: Mapping[str, Any]) -> None:
    """Warn where the caller's steps_offset does nothing. A model's own is diffusers' and is not looked at."""
    checked = SOLVERS[solver].check(options)
    spreads = ("timesteps", "sigmas", "timestep_respacing")
    instead = [name for name in spreads if getattr(checked, name, None) is not None]
    if checked.timestep_spacing != "leading":
        instead.append(f"timestep_spacing={checked.timestep_spacing}")
    if instead:
        warnings.warn(
            f"steps_offset={offset} has no effect with {instead[0]}: as in diffusers it is added to the timesteps of "
            "timestep_spacing=leading",
            stacklevel=2,
        )


def _check_variance(table: Table, settings: DiffusionSettings) -> None:
    """A table's noise must be scaled the way the network says it: the step reads V in one way for a whole batch."""
    if table.learned not in (LEARNED_NONE, settings.learned):
        predicts = (
            "no variance" if settings.variance is None else f"a variance of the type {settings.variance}"
        )
        raise ConfigError(f"this model predicts {predicts}", argument="variance_type")
    # A range of V that is 1 at both ends leaves z alone; the variance itself has no such neutral form.
    if settings.learned == LEARNED_VARIANCE and table.learned == LEARNED_NONE and table.stochastic:
        raise ConfigError(
            "this model's own variance (learned) must be used where a solver adds noise",
            argument="variance_type",
        )
