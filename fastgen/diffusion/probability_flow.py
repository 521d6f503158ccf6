"""The probability flow of any process as one ordinary differential equation, for likelihoods.

For a process x = alpha x_0 + sigma epsilon let r = sqrt(alpha^2 + sigma^2), y = x / r and phi = atan(sigma / alpha).
Then y = cos(phi) x_0 + sin(phi) epsilon whatever the process is, and its probability flow (Song et al. 2021,
"Score-Based Generative Modeling through SDEs", eq. 13) is

    dy / dphi = cos(phi) epsilon(y) - sin(phi) x_0(y)

with the network's estimates of epsilon and x_0: the v of Salimans & Ho 2022 (appendix D). It is integrated in

    u = log tan(phi / 2)        dphi = sin(phi) du        sin(phi) = 1 / cosh(u)        cos(phi) = -tanh(u)

which falls like log(sigma / alpha) near the data, where the score steepens like 1 / sigma, and is 0 at pure noise,
where log(sigma / alpha) is infinite. Along it d log p(y) / du = -div(dy / du) (eq. 39).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..errors import ConfigError
from .consistency_model import ConsistencyModel
from .edm import EDM
from .flow_matching import FlowMatching
from .points import Point
from .processes import AnyProcess
from .schedule import NoiseSchedule
from .sde import SDE

START = 1e-5  # time of an SDE, or sigma of flow matching, at which data is taken to lie (Song et al. 2021)


@dataclass(frozen=True)
class Slope:
    """dy / du = own y + output F(input y; time), in scalars: F is the network."""

    own: float
    output: float
    input: float
    time: float


@dataclass(frozen=True)
class ProbabilityFlow:
    """The equation of a process, from the data's end, u = `start`, to noise, u = `end`.

    The data's end is the lowest noise level that the network knows: timestep 0 of a NoiseSchedule, time 1e-5 of an
    SDE, sigma_min of EDM, sigma = 1e-5 of flow matching. There the model is a density of z = x / alpha = x_0 +
    `noise` epsilon. The other end is where sampling starts.

    ConfigError for a process without a probability flow.
    """

    process: AnyProcess

    def __post_init__(self) -> None:
        if isinstance(self.process, ConsistencyModel):
            raise ConfigError(
                "a consistency model says where paths end, not the score along them: it has no likelihood",
                argument="process",
            )

    @cached_property
    def ends(self) -> tuple[Point, Point]:
        """The points at `start` and at `end`."""
        process = self.process
        if isinstance(process, NoiseSchedule):
            return process.point(float(process.levels[0])), process.point(float(process.levels[-1]))
        if isinstance(process, SDE):
            return process.at(min(START, process.end)), process.at(1.0)
        if isinstance(process, EDM):
            return process.point(process.sigma_min), process.point(process.sigma_max)
        if isinstance(process, FlowMatching):
            return process.point(START), process.point(1.0)
        raise ConfigError(f"no likelihood of {type(process).__name__}", argument="process")

    @property
    def start(self) -> float:
        """u at the data's end."""
        return angle(self.ends[0])

    @property
    def end(self) -> float:
        """u at noise."""
        return angle(self.ends[1])

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on data, in the data's units: sigma / alpha at the data's end."""
        return self.ends[0].sigma / self.ends[0].alpha

    @property
    def shrinkage(self) -> float:
        """y = shrinkage * z at the data's end."""
        return -math.tanh(self.start)

    @property
    def prior_scale(self) -> float:
        """Standard deviation of y at `end`, where sampling starts from a normal."""
        if isinstance(self.process, NoiseSchedule):
            return 1.0
        last = self.ends[1]
        return last.sigma / math.hypot(last.alpha, last.sigma)

    def point(self, u: float) -> Point:
        """The process' point at u. ConfigError where the network cannot be used, as for ``Point``."""
        sin, cos = 1.0 / math.cosh(u), -math.tanh(u)
        return self.process.point(sin / (sin + cos) if isinstance(self.process, FlowMatching) else sin / cos)

    def slope(self, u: float) -> Slope:
        """The equation's coefficients at u."""
        sin, cos = 1.0 / math.cosh(u), -math.tanh(u)
        point = self.point(u)
        radius = math.hypot(point.alpha, point.sigma)
        (p, q), (r, s) = point.x0, point.noise
        return Slope(
            own=sin * (cos * r - sin * p) * radius,
            output=sin * (cos * s - sin * q),
            input=point.input_scale * radius,
            time=point.time,
        )


def angle(point: Point) -> float:
    """u = log tan(phi / 2) = log(sigma / (alpha + sqrt(alpha^2 + sigma^2))) of a point."""
    return math.log(point.sigma / (point.alpha + math.hypot(point.alpha, point.sigma)))
