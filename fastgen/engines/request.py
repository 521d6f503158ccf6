"""What a caller asked of a diffusion engine, checked once, with every default filled in."""

from __future__ import annotations

import secrets
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
from .settings import DiffusionSettings

MAX_SEED = (1 << 64) - 1
MAX_COUNT = 1_000_000  # of samples a call, which holds all of them


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

    steps = settings.steps if steps is None else _index(steps)
    if type(steps) is not int:
        raise ConfigError(f"steps: expected an int, got {steps!r}")
    count = _count(n, seeds, labels)
    request = Request(
        _seeds(count, seed, seeds),
        _labels(count, labels, settings),
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


def _count(n: Any, seeds: Any, labels: Any) -> int:
    if n is not None:
        count = _index(n)
        if type(count) is not int or not 1 <= count <= MAX_COUNT:
            raise ConfigError(f"n: expected an int from 1 to {MAX_COUNT}, got {n!r}")
        return count
    if seeds is not None:
        return len(_list("seeds", seeds))
    return 1 if labels is None or _single(labels) else len(_list("labels", labels))


def _seeds(count: int, seed: Any, seeds: Any) -> tuple[int, ...]:
    if seed is not None and seeds is not None:
        raise ArgumentError("seed and seeds: give one of them")
    if seeds is None:
        # 53 bits survive every JSON reader
        first = secrets.randbits(53) if seed is None else _seed("seed", seed)
        seeds = range(first, first + count)
    given = _list("seeds", seeds)
    if len(given) != count or count == 0:
        raise ConfigError(f"seeds: expected {count or 'at least 1'}, got {len(given)}")
    return tuple(_seed("seeds", s) for s in given)


def _seed(name: str, seed: Any) -> int:
    value = _index(seed)
    if type(value) is not int or not 0 <= value <= MAX_SEED:
        raise ConfigError(f"{name}: expected integers from 0 to 2^64 - 1, got {seed!r}")
    return value


def _index(value: Any) -> Any:
    """NumPy's and torch's integers as Python's; anything else as it is, for the caller to refuse."""
    if isinstance(value, bool):
        return value
    try:
        return value.__index__()
    except (AttributeError, TypeError, ValueError):
        return value


def _list(name: str, values: Any) -> list:
    try:
        return list(values)
    except TypeError:
        raise ConfigError(f"{name}: expected a list, got {values!r}") from None


def _single(label: Any) -> bool:
    """Whether this is one label, for all samples."""
    return isinstance(label, (str, bool, float)) or type(_index(label)) is int


def _labels(count: int, labels: Any, settings: DiffusionSettings) -> tuple[int | None, ...]:
    given = [labels] * count if labels is None or _single(labels) else _list("labels", labels)
    if len(given) != count:
        raise ConfigError(f"labels: expected one, or one a sample ({count}), got {len(given)}")
    if settings.num_classes is None:
        if any(label is not None for label in given):
            raise ConfigError("labels: this model has no classes")
        return (None,) * count
    if settings.null_class is None and any(label is None for label in given):
        raise ConfigError(f"labels: this model needs one a sample, from 0 to {settings.num_classes - 1}")
    return tuple(None if label is None else _label(label, settings) for label in given)


def _label(label: Any, settings: DiffusionSettings) -> int:
    names, classes = settings.class_names or (), settings.num_classes or 0
    if isinstance(label, str) and label in names:
        return names.index(label)
    number = _index(label)
    if type(number) is not int or not 0 <= number < classes:
        by_name = f" or one of {', '.join(names[:20])}" if names else ""
        raise ConfigError(f"labels: expected numbers from 0 to {classes - 1}{by_name}, got {label!r}")
    return number


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
