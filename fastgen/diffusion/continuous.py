"""What processes in continuous time share: step points by a rule of their own, or by one of the formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..config import from_dict, shown, to_dict, validate
from ..errors import ConfigError
from .given import given_sigmas
from .points import Point, StepPoints, clean
from .spacings import FORMULAS, SpacingOptions, stable
from .timesteps import STABLE

MAX_STEPS = 10_000

P = TypeVar("P", bound="ContinuousProcess")


@dataclass(frozen=True)
class ContinuousProcess:
    """A diffusion process whose noise level is a real number; the base of `EDM`, `FlowMatching` and Song's SDEs.

    A subclass has bounded fields with a `prediction_type` among them, `point`, and `natural`, its own levels.
    Raises ConfigError (a ValueError) that names the field.
    """

    name: ClassVar[str]
    own_levels: ClassVar[bool] = (
        True  # its fields say them, and solvers that would choose others by default do not
    )

    prediction_type: str

    def __post_init__(self) -> None:
        validate(self, f"process {self.name}")

    @classmethod
    def from_config(cls: type[P], values: Mapping[str, Any]) -> P:
        """Build from untrusted JSON; unknown, mistyped or absurd values raise ConfigError naming the key."""
        named = values.get("process", cls.name) if isinstance(values, Mapping) else cls.name
        if named != cls.name:
            raise ConfigError(
                f"{cls.__name__} is the process {cls.name}, got {shown(named)}; process_from_config takes all",
                argument="process",
            )
        return from_dict(cls, {k: v for k, v in values.items() if k != "process"}, f"process {cls.name}")

    def to_config(self) -> dict[str, Any]:
        """All fields as JSON types, and {"process": its name}."""
        return {"process": self.name, **to_dict(self)}

    @property
    def prediction_types(self) -> tuple[str, ...]:
        """What a network of this process may predict."""
        return type(self).__dataclass_fields__["prediction_type"].metadata["choices"]

    @property
    def steps_limit(self) -> int:
        """Most steps of a solver."""
        return MAX_STEPS

    @property
    def tells_sigma(self) -> bool:
        """Whether the network is told sigma itself, as networks with Fourier features of log(sigma) want it."""
        return False

    def point(self, level: float, time: float | None = None) -> Point:
        """The point at `level` w = sigma / scale; the network is told `time`, by default what belongs to the level."""
        raise NotImplementedError

    def natural(self, count: int, *, finite: bool = False, spacing: str = "linspace") -> np.ndarray:
        """This process' own levels, noisiest first, float64 [count], above 0.

        finite: without a level of pure noise, where alpha = 0 and log-SNR is infinite. spacing: of `SPACINGS`.
        """
        raise NotImplementedError

    def spread(self, options: SpacingOptions, low: float, high: float, count: int) -> np.ndarray:
        """`count` levels from `high` down to `low` by the formula that `options` choose, float64 [count]."""
        return options.formula_levels(low, high, count)

    def given_levels(self, sigmas: np.ndarray, finite: bool) -> np.ndarray:
        """The levels that a caller's `sigmas` stand for. finite: see `natural`."""
        return sigmas

    def step_points(
        self,
        steps: int,
        options: SpacingOptions,
        *,
        finite: bool = False,
        log_linear: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        to_zero: bool = True,
    ) -> StepPoints:
        """The step points of `steps` steps down to the clean sample, or, with to_zero=False, to the lowest level.

        One of use_karras_sigmas and the like spreads the levels by its formula between the largest and smallest
        natural ones, or sigma_max and sigma_min. as_diffusers, to_zero=False: the run is at the lowest level one step
        before its end. finite: see `natural`. Raises ConfigError for what has no meaning
        without discrete timesteps.
        """
        if options.steps_offset or log_linear:
            what = "steps_offset" if options.steps_offset else "interpolation_type"
            raise ConfigError(
                f"has no meaning for the process {self.name}, which has no timesteps", argument=what
            )
        if options.timesteps is not None:
            raise ConfigError(
                f"has no meaning for the process {self.name}, which has no timesteps; give sigmas",
                argument="timesteps",
            )
        # diffusers evaluates at the lowest level, too, and takes a last step of no length from there.
        idle_end = not to_zero and options.as_diffusers
        count = steps if to_zero or idle_end else steps + 1
        steadied = options.timestep_spacing == STABLE and not self.own_levels
        # As on a NoiseSchedule: at the last of steps + 1 points the network is not evaluated.
        left_out = not self.own_levels and to_zero and (steadied or (finite and options.formula is None))
        spacing = "linspace" if options.timestep_spacing == STABLE else options.timestep_spacing
        levels = self.natural(count + left_out, finite=finite, spacing=spacing)[:count]
        if options.formula is not None:
            low = float(levels[-1]) if sigma_min is None else sigma_min
            high = float(levels[0]) if sigma_max is None else sigma_max
            if count > 1 and low >= high:
                raise ConfigError(f"{low:.4g} must be below sigma_max, {high:.4g}", argument="sigma_min")
            levels = self.spread(options, low, high, count)
        elif sigma_min is not None or sigma_max is not None:
            raise ConfigError(
                f"have an effect only with one of {', '.join(FORMULAS)}; the process {self.name} has its own",
                argument="sigma_min, sigma_max",
            )
        elif (given := given_sigmas(options)) is not None:
            if not to_zero:
                raise ConfigError(
                    f"end at the clean sample on the process {self.name}; use final_sigmas_type=zero",
                    argument="sigmas",
                )
            levels = self.given_levels(given, finite)
        elif steadied:
            levels = stable(float(levels[-1]), float(levels[0]), count)
        if np.any(np.diff(levels) >= 0) or not np.all(np.isfinite(levels)) or levels[-1] <= 0:
            raise ConfigError(
                f"the levels of {steps} steps no longer fall; use fewer steps", argument="steps"
            )
        points = tuple(self.point(float(level)) for level in levels)
        end = clean() if to_zero else points[-1]
        return StepPoints(points[:steps], end, initial_scale=points[0].sigma)


def geometric(high: float, low: float, count: int) -> np.ndarray:
    """`count` levels, even in their logarithm, the ends exact; float64."""
    levels = np.exp(np.linspace(math.log(high), math.log(low), count))
    levels[-1], levels[0] = low, high
    return levels
