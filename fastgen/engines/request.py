"""What a caller asked of a diffusion engine, checked once, with every default filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from typing import Any

from ..config import named
from ..diffusion.schedule import NoiseSchedule
from ..diffusion.solvers import SOLVERS, solver_table
from ..diffusion.table import LEARNED_NONE, LEARNED_VARIANCE, Table
from ..errors import ArgumentError, ConfigError
from ..runtime import loop
from .arguments import as_index, sample_count, sample_labels, sample_seeds
from .settings import DiffusionSettings


@dataclass(frozen=True)
class Request:
    """A complete request: it alone repeats a run on the same model."""

    seeds: tuple[int, ...]
    labels: tuple[int | None, ...]
    solver: str
    steps: int
    guidance_scale: float
    options: dict[str, Any] = field(default_factory=dict)

    def table(self, schedule: NoiseSchedule) -> Table:
        """The solver's table; the same object for the same solver, so that it is uploaded once."""
        options = tuple((name, type(value), value) for name, value in sorted(self.options.items()))
        return _table(self.solver, schedule, self.steps, options)

    def evaluations(self, schedule: NoiseSchedule) -> int:
        """Network evaluations a sample takes."""
        return len(self.table(schedule))

    def singles(self, schedule: NoiseSchedule) -> list[loop.Request]:
        """One request a sample, for the loop."""
        table = self.table(schedule)
        return [
            # Without a label both halves of guidance would be the same network output.
            loop.Request(table, seed, label, 1.0 if label is None else self.guidance_scale)
            for seed, label in zip(self.seeds, self.labels, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The keyword arguments of ``sample`` that repeat it, as JSON types."""
        named = {"solver": self.solver, "steps": self.steps, "guidance_scale": self.guidance_scale}
        return {"seeds": list(self.seeds), "labels": list(self.labels), **named, **self.options}


@lru_cache(maxsize=256, typed=True)  # typed: 1 and True are equal keys, and not the same argument
def _table(
    solver: str, schedule: NoiseSchedule, steps: int, options: tuple[tuple[str, type, Any], ...]
) -> Table:
    return solver_table(solver, schedule, steps, **{name: value for name, _, value in options})


def resolve(
    settings: DiffusionSettings,
    /,
    *,
    n: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    labels: int | str | Sequence[int | str | None] | None = None,
    solver: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    **options: Any,
) -> Request:
    """Check the arguments of ``sample`` against a model's settings. Raises ConfigError or ArgumentError."""
    if "num_inference_steps" in options:
        if steps is not None:
            raise ArgumentError("steps and num_inference_steps are the same argument: give one")
        steps = options.pop("num_inference_steps")
    solver = settings.solver if solver is None else solver
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise ConfigError(f"solver: expected one of {', '.join(SOLVERS)}, got {solver!r}")
    known = [option.name for option in SOLVERS[solver].options]
    if eta is not None:
        options["eta"] = eta
    if unknown := sorted(set(options) - set(known)):
        raise ArgumentError(
            f"unknown argument {', '.join(map(named, unknown[:5]))}; besides those of sample(), solver {solver} takes "
            f"{', '.join(known)}"
        )
    if solver == settings.solver:
        options = {**(settings.solver_options or {}), **options}
    for name, value in options.items():
        if isinstance(value, Real) and not isinstance(value, (bool, int, float)):
            options[name] = value = float(value)  # NumPy's
        if not isinstance(value, (bool, int, float, str)):
            raise ConfigError(f"{name}: expected a number, a truth value or a string, got {value!r}")
    if settings.learned and solver == "ddpm":
        options.setdefault("variance_type", settings.variance)

    steps = settings.steps if steps is None else as_index(steps)
    if type(steps) is not int:
        raise ConfigError(f"steps: expected an int, got {steps!r}")
    count = sample_count(n, seeds, labels)
    unlabelled = settings.null_class is not None
    request = Request(
        sample_seeds(count, seed, seeds),
        sample_labels(count, labels, settings.num_classes, settings.class_names, unlabelled),
        solver,
        steps,
        _guidance(guidance_scale, settings),
        options,
    )
    table = request.table(settings.noise_schedule)  # checks steps and options
    _check_variance(table, settings)
    return request


def _check_variance(table: Table, settings: DiffusionSettings) -> None:
    """A table's noise must be scaled the way the network says it: the step reads V in one way for a whole batch."""
    if table.learned not in (LEARNED_NONE, settings.learned):
        predicts = (
            "no variance" if settings.variance is None else f"a variance of the type {settings.variance}"
        )
        raise ConfigError(f"variance_type: this model predicts {predicts}")
    # A range of V that is 1 at both ends leaves z alone; the variance itself has no such neutral form.
    if settings.learned == LEARNED_VARIANCE and table.learned == LEARNED_NONE and table.stochastic:
        raise ConfigError(
            "variance_type: this model's own variance (learned) must be used where a solver adds noise"
        )


def _guidance(scale: float | None, settings: DiffusionSettings) -> float:
    if scale is None:
        return settings.guidance_scale
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= scale <= 100:
        raise ConfigError(f"guidance_scale: expected a number from 0 to 100 (1 = no guidance), got {scale!r}")
    if scale != 1 and settings.null_class is None:
        raise ConfigError(
            "guidance_scale: this model has no null class to be guided away from; leave it at 1 (no guidance)"
        )
    return float(scale)
