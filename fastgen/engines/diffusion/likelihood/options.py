"""The arguments of a diffusion model's ``log_prob`` and ``bits_per_dim``, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....config import bounded, from_dict, one_of, shown
from ....diffusion.schedule import NoiseSchedule
from ....errors import ArgumentError, ConfigError
from ...arguments import as_index, check_known
from ..settings import DiffusionSettings
from .bound import VARIANCES
from .ode import ADAPTIVE, METHODS

MAX_DRAWS = 4095  # the noise of each has 2^20 numbers of its own
WHOLE_TRACE = 64  # elements of a sample up to which "auto" takes the whole trace
TRACES = ("auto", "exact", "hutchinson")
DEQUANTISATIONS = ("uniform", "decoder")


@dataclass(frozen=True)
class ODEOptions:
    """Of the probability flow.

    solver: rk4 or heun, with `steps` equal steps; dopri5, adaptive, with `rtol` and `atol` (needs torchdiffeq).
    trace: exact, element by element; hutchinson, by random directions; auto, exact up to 64 elements.
    dequantisation: of levels: uniform or decoder; None: decoder on a NoiseSchedule, uniform elsewhere.
    """

    solver: str = one_of(*METHODS, ADAPTIVE, default="rk4")
    steps: int = bounded(1, 10_000, default=20)
    rtol: float = bounded(1e-12, 1.0, default=1e-5)
    atol: float = bounded(1e-12, 1.0, default=1e-5)
    trace: str = one_of(*TRACES, default="auto")
    dequantisation: str | None = one_of(*DEQUANTISATIONS, default=None)


@dataclass(frozen=True)
class BoundOptions:
    """Of the variational bound.

    timesteps: levels evaluated for each sample and draw: 0, and one at random of each of so many runs of the others,
        which it stands for, so that the bound is estimated without bias; None: all.
    levels: of the chain, on a process in continuous time; a NoiseSchedule has its timesteps.
    variance_type: of the model's steps; None: the learned one, or fixed_small.
    """

    timesteps: int | None = bounded(2, 100_000, default=None)
    levels: int | None = bounded(2, 100_000, default=None)
    variance_type: str | None = one_of(*VARIANCES, default=None)


METHOD_OPTIONS: dict[str, type] = {"ode": ODEOptions, "bound": BoundOptions}


def read(method: Any, values: Mapping[str, Any], settings: DiffusionSettings) -> ODEOptions | BoundOptions:
    """The options of `method`. Raises ConfigError, or ArgumentError for those that it does not have."""
    if not isinstance(method, str) or method not in METHOD_OPTIONS:
        raise ConfigError(
            f"expected one of {', '.join(METHOD_OPTIONS)}, got {shown(method)}", argument="method"
        )
    values = dict(values)
    if values.pop("guidance_scale", 1) != 1:
        raise ConfigError(
            "a likelihood is that of the model as it was trained, guidance_scale 1; guided samples come from a sharper "
            "distribution, which was not fitted to data",
            argument="guidance_scale",
        )
    kind = METHOD_OPTIONS[method]
    known = _names(kind)
    others = {name for other in METHOD_OPTIONS.values() for name in _names(other)}.difference(known)
    if wrong := sorted(others.intersection(values)):
        raise ArgumentError(f"has no meaning for method={method}", argument=", ".join(wrong))
    check_known(values, known, f"besides x, samples, labels, seed and method, method={method} takes")
    try:
        options: ODEOptions | BoundOptions = from_dict(kind, values, method)
    except ConfigError as error:
        raise ConfigError(error.reason, argument=(error.argument or "").rpartition(": ")[2]) from error
    _check(options, values, settings)
    return options


def draws(samples: Any) -> int:
    """How many samples are averaged. Raises ConfigError."""
    count = as_index(samples)
    if type(count) is not int or not 1 <= count <= MAX_DRAWS:
        raise ConfigError(f"expected an int from 1 to {MAX_DRAWS}, got {shown(samples)}", argument="samples")
    return count


def whole_trace(options: ODEOptions, dimensions: int) -> bool:
    """Whether the trace is taken element by element."""
    return options.trace == "exact" or (options.trace == "auto" and dimensions <= WHOLE_TRACE)


def check_finite(x: Tensor) -> None:
    """Raise ConfigError for NaN and infinite values."""
    if not bool(torch.isfinite(x).all()):
        raise ConfigError("has values that are NaN or infinite", argument="x")


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _check(options: ODEOptions | BoundOptions, given: Mapping[str, Any], settings: DiffusionSettings) -> None:
    """Options that have no effect beside others, or no meaning for the model. Raises ConfigError."""
    process = settings.noise_schedule
    if isinstance(options, ODEOptions):
        idle = ("steps",) if options.solver == ADAPTIVE else ("rtol", "atol")
        for name in idle:
            if name in given:
                raise ConfigError(f"has no effect on solver={options.solver}", argument=name)
        return
    if isinstance(process, NoiseSchedule) and options.levels is not None:
        raise ConfigError(
            f"this model's chain has its {process.num_train_timesteps} timesteps; timesteps= evaluates fewer",
            argument="levels",
        )
    said, wanted = settings.variance, options.variance_type
    if wanted is not None and wanted.startswith("learned") and wanted != said:
        raise ConfigError(
            f"this network says {said or 'no'} variance, got {wanted}", argument="variance_type"
        )
