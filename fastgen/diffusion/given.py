"""Timesteps or noise levels that a caller gives in place of a spacing, as with diffusers' ``set_timesteps``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import bounded
from ..errors import ConfigError

MOST = 100_000


@dataclass(frozen=True)
class Begin:
    """An option of every solver.

    begin_index: how many of the first steps are left out (diffusers' set_begin_index). The run then begins at the noise
        level of the step that follows, from a state x = alpha x_0 + sigma epsilon that its caller makes, as in image to
        image; a multistep method begins there as it begins elsewhere, with what it has
    """

    begin_index: int = bounded(0, MOST, default=0)


@dataclass(frozen=True)
class GivenTimesteps:
    """An option of solvers that visit timesteps.

    timesteps: those at which the network is evaluated, strictly falling, in place of timestep_spacing; `steps` is their
        number and may be left out
    """

    timesteps: tuple[float, ...] | None = bounded(0.0, float(MOST), default=None, max_items=MOST)


@dataclass(frozen=True)
class GivenLevels(GivenTimesteps):
    """Options of solvers that visit noise levels: `GivenTimesteps`, and

    sigmas: the noise levels sigma / alpha (flow matching: sigma, before the process' shift, as in diffusers) at which
        the network is evaluated, strictly falling; the last may be 0, the clean end, where the run ends anyway
    """

    sigmas: tuple[float, ...] | None = bounded(0.0, 1e9, default=None, max_items=MOST + 1)


def given_count(options: Any) -> tuple[str, int] | None:
    """(the option's name, how many evaluations it asks for), None where neither is given. ConfigError for both."""
    timesteps, sigmas = getattr(options, "timesteps", None), getattr(options, "sigmas", None)
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is not None and not values:
            raise ConfigError("expected at least one", argument=name)
    if timesteps is not None and sigmas is not None:
        raise ConfigError("at most one of them can be given", argument="timesteps, sigmas")
    if timesteps is not None:
        return "timesteps", len(timesteps)
    return None if sigmas is None else ("sigmas", len(_without_end(sigmas)))


def given_timesteps(options: GivenTimesteps, num_train_timesteps: int, *, whole: bool) -> np.ndarray | None:
    """float64 [steps], or int64 if `whole`; None where none are given. ConfigError for what is no such list."""
    if options.timesteps is None:
        return None
    times = np.array(options.timesteps, dtype=np.float64)
    _check("timesteps", times)
    if times[0] > num_train_timesteps - 1:
        raise ConfigError(f"expected 0 to {num_train_timesteps - 1}, got {times[0]:g}", argument="timesteps")
    if not whole:
        return times
    if np.any(times != np.floor(times)):
        raise ConfigError(
            f"this solver steps between whole timesteps, got {times[times != np.floor(times)][0]:g}",
            argument="timesteps",
        )
    return times.astype(np.int64)


def given_sigmas(options: GivenLevels) -> np.ndarray | None:
    """float64 [steps], above 0; None where none are given. ConfigError for what is no such list."""
    if options.sigmas is None:
        return None
    levels = np.array(_without_end(options.sigmas), dtype=np.float64)
    _check("sigmas", levels)
    if levels[-1] <= 0.0:
        raise ConfigError("expected levels above 0, but for the last, which may be 0", argument="sigmas")
    return levels


def _without_end(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    return sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0.0 else sigmas


def _check(name: str, values: np.ndarray) -> None:
    if np.any(np.diff(values) >= 0):
        i = int(np.argmax(np.diff(values) >= 0))
        raise ConfigError(
            f"expected strictly falling numbers, got {values[i]:g} before {values[i + 1]:g}", argument=name
        )
