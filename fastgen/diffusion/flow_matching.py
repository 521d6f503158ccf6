"""Flow matching and rectified flow: Lipman et al. 2023 (arXiv:2210.02747), Liu et al. 2023 (arXiv:2209.03003).

    x = (1 - sigma) x_0 + sigma epsilon,   sigma from 1 (noise) to 0 (data)

Names, defaults and the rules of shifting are those of diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .continuous import ContinuousProcess
from .points import Point, estimates
from .spacings import SpacingOptions

NEARLY = 1e-6  # from pure noise, where log-SNR must be finite
MOST_MU = 20.0  # of a dynamic shift, |mu|: base_shift's and max_shift's own bound


@dataclass(frozen=True)
class FlowMatching(ContinuousProcess):
    """Straight paths between noise and data.

    prediction_type: velocity, dx / dsigma = epsilon - x_0; sample, x_0
    num_train_timesteps: T; the network is told T sigma, and sigma = 1 / T is the lowest level
    time: timesteps, the network is told T sigma; unit, sigma in [0, 1]
    invert_sigmas: time and velocity run the other way, as in Lipman et al. 2023: the network is told 1 - sigma (times
        T), and a velocity is x_0 - epsilon
    shift: sigma -> shift sigma / (1 + (shift - 1) sigma) (Esser et al. 2024, eq. 23)
    use_dynamic_shifting: shift by the image's size instead: e^mu (time_shift_type exponential) or mu (linear) for a
        shift, mu on the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift) at
        image_seq_len, the number of tokens that the network sees
    lambda_levels: for solvers that count in log-SNR, which is infinite at sigma = 1. below_one: even from 1 - 1 / T to
        0, which is not visited, the rule of diffusers' DPM-Solver; nearly_one: even from 1 - 1e-6 to 1 / T, which is
        not visited, the rule of its UniPC
    shift_terminal: stretch the levels so that the lowest is this
    """

    name: ClassVar[str] = "flow"

    prediction_type: str = one_of("velocity", "sample", default="velocity")
    num_train_timesteps: int = bounded(1, 100_000, default=1000)
    time: str = one_of("timesteps", "unit", default="timesteps")
    invert_sigmas: bool = False
    shift: float = bounded(1e-3, 1e3, default=1.0)
    use_dynamic_shifting: bool = False
    base_shift: float = bounded(-20.0, 20.0, default=0.5)
    max_shift: float = bounded(-20.0, 20.0, default=1.15)
    base_image_seq_len: int = bounded(1, 100_000_000, default=256)
    max_image_seq_len: int = bounded(1, 100_000_000, default=4096)
    image_seq_len: int | None = bounded(1, 100_000_000, default=None)
    time_shift_type: str = one_of("exponential", "linear", default="exponential")
    lambda_levels: str = one_of("below_one", "nearly_one", default="below_one")
    shift_terminal: float | None = bounded(1e-6, 0.999, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_image_seq_len >= self.max_image_seq_len:
            raise ConfigError(
                f"{self.base_image_seq_len} must be below max_image_seq_len, {self.max_image_seq_len}",
                argument="base_image_seq_len",
            )
        if self.image_seq_len is None:
            return
        if not self.use_dynamic_shifting:
            raise ConfigError(
                "has an effect only with use_dynamic_shifting=True; leave it out", argument="image_seq_len"
            )
        if abs(self.mu) > MOST_MU:
            raise ConfigError(
                f"{self.image_seq_len} gives the dynamic shift mu = {self.mu:.4g}, expected "
                f"{-MOST_MU:g} to {MOST_MU:g}: it is too far from base_image_seq_len and max_image_seq_len, or "
                "base_shift and max_shift too far apart",
                argument="image_seq_len",
            )
        if self.time_shift_type == "linear" and self.mu <= 0:
            raise ConfigError(
                f"a linear time shift needs mu > 0, got {self.mu:.4g}", argument="image_seq_len"
            )

    @property
    def mu(self) -> float:
        """The dynamic shift at image_seq_len. ConfigError where that is not given."""
        if self.image_seq_len is None:
            raise ConfigError(
                "use_dynamic_shifting needs the number of tokens that the network sees, "
                "(height / patch) * (width / patch)",
                argument="image_seq_len",
            )
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (self.image_seq_len - self.base_image_seq_len)

    def point(self, level: float, time: float | None = None) -> Point:
        """The point at sigma = `level` in (0, 1]."""
        if not 0.0 < level <= 1.0:
            raise ConfigError(
                f"the process flow has levels above 0 up to 1, a solver asked for {level:.6g}; sigma_max, and "
                "noise added on the way (S_churn), must stay within them",
                argument="sigma",
            )
        x0, noise = estimates(self.prediction_type, 1.0 - level, level)
        if time is None:
            time = (1.0 - level if self.invert_sigmas else level) * self._time_unit
        if self.invert_sigmas and self.prediction_type == "velocity":
            x0, noise = (x0[0], -x0[1]), (noise[0], -noise[1])
        return Point(1.0 - level, level, scale=1.0, time=time, x0=x0, noise=noise)

    def natural(self, count: int, *, finite: bool = False, spacing: str = "linspace") -> np.ndarray:
        """linspace: from 1 to 1 / T; trailing: from 1 by 1 / count (Flux's and SD3's pipelines); then shifted.

        finite: by lambda_levels instead of linspace.
        """
        low = 1.0 / self.num_train_timesteps
        if spacing == "leading":
            raise ConfigError(
                "leading has no meaning for the process flow; use linspace or trailing",
                argument="timestep_spacing",
            )
        if low == 1.0 and (finite or (count > 1 and spacing != "trailing")):
            raise ConfigError(
                "1 leaves no level between noise and data; expected at least 2",
                argument="num_train_timesteps",
            )
        if spacing == "trailing":
            levels = np.linspace(1.0, 1.0 / count, count)
        elif finite and self.lambda_levels == "nearly_one":
            levels = np.linspace(1.0, low, count + 1)[:-1]
        elif finite:
            levels = np.linspace(1.0 - low, 0.0, count + 1)[:-1]
        else:
            # diffusers takes the two ends from levels shifted before, and shifts once more.
            levels = np.linspace(1.0, low if self.use_dynamic_shifting else _shifted(low, self.shift), count)
        return self.given_levels(levels, finite)

    def given_levels(self, sigmas: np.ndarray, finite: bool) -> np.ndarray:
        """`sigmas` shifted and stretched as the process' own. ConfigError for one above 1."""
        if sigmas[0] > 1.0:
            raise ConfigError(f"expected 0 to 1, got {sigmas[0]:g}", argument="sigmas")
        levels = _shifted(sigmas, self._factor)
        if self.shift_terminal is not None:
            left = 1.0 - levels
            if left[-1] == 0.0:
                raise ConfigError("needs at least 2 steps", argument="shift_terminal")
            levels = 1.0 - left * ((1.0 - self.shift_terminal) / left[-1])
        return np.minimum(levels, 1.0 - NEARLY) if finite else levels

    def spread(self, options: SpacingOptions, low: float, high: float, count: int) -> np.ndarray:
        """As for all processes; use_lu_lambdas: even in log-SNR = log((1 - sigma) / sigma), from a finite one."""
        if not options.use_lu_lambdas or high > 1.0:  # which `point` refuses
            return super().spread(options, low, high, count)
        if high == 1.0:  # pure noise
            high = float(self.natural(count, finite=True)[0])
            low = min(low, high)
        ratios = options.formula_levels(low / (1.0 - low), high / (1.0 - high), count)
        return ratios / (1.0 + ratios)

    @property
    def _factor(self) -> float:
        if not self.use_dynamic_shifting:
            return self.shift
        return math.exp(self.mu) if self.time_shift_type == "exponential" else self.mu

    @property
    def _time_unit(self) -> float:
        return float(self.num_train_timesteps) if self.time == "timesteps" else 1.0


def _shifted(levels: Any, factor: float) -> Any:
    return factor * levels / (1.0 + (factor - 1.0) * levels)
