"""How strongly a sample is guided, and where in its run: the arguments of ``sample`` as weights of a table's rows.

The convention is explicit: F_u + w (F_c - F_u) with w = guidance_scale, so that 1 is no guidance, 0 the network without
the label, and above 1 amplifies (Ho & Salimans 2022, arXiv:2207.12598, whose own weight is w - 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ...diffusion.table import Table
from ...errors import ConfigError

MAX_SCALE = 100.0
OPEN = {"inf": math.inf, "-inf": -math.inf}  # ends of an interval where there is none, as JSON writes them
WORDS = (  # the arguments of sample, in the order of `Guidance.checked`
    "guidance_scale",
    "guidance_interval",
    "guidance_sigmas",
    "guidance_rescale",
    "classifier_scale",
    "guidance_times",
)
Weight = Callable[[float], float]


@dataclass(frozen=True)
class Guidance:
    """Guidance of one sample.

    scale: a weight, or one per network evaluation. interval: guided at evaluation i of n where start <= i / n < stop.
    sigmas: guided where low < sigma <= high (Kynkaanniemi et al. 2024, arXiv:2404.07724, eq. 5). rescale: phi of Lin et
    al. 2023. classifier_scale: of the classifier's gradient (Dhariwal & Nichol 2021); it is added, 0 is none. times:
    guided where low <= t <= high, t being what the network is told, compared in float32 as it is told.
    """

    scale: float | tuple[float, ...] | Weight = 1.0
    interval: tuple[float, float] | None = None
    sigmas: tuple[float, float] | None = None
    rescale: float = 0.0
    classifier_scale: float = 0.0
    times: tuple[float, float] | None = None

    @classmethod
    def checked(
        cls,
        default: float,
        scale: Any = None,
        interval: Any = None,
        sigmas: Any = None,
        rescale: Any = None,
        classifier_scale: Any = None,
        times: Any = None,
    ) -> Guidance:
        """One sample's arguments; None is no guidance, for the scale `default`. Raises ConfigError."""
        if scale is None:
            scale = default
        elif isinstance(scale, (list, tuple)):
            scale = tuple(_number("guidance_scale", w, 0.0, MAX_SCALE, "1 = no guidance") for w in scale)
        elif not callable(scale):
            scale = _number("guidance_scale", scale, 0.0, MAX_SCALE, "1 = no guidance")
        return cls(
            scale,
            _pair("guidance_interval", interval, 0.0, 1.0, "fractions of the run"),
            _pair("guidance_sigmas", sigmas, 0.0, math.inf, "noise levels sigma / alpha"),
            0.0 if rescale is None else _number("guidance_rescale", rescale, 0.0, 1.0, "0 = none"),
            0.0
            if classifier_scale is None
            else _number("classifier_scale", classifier_scale, 0.0, 1000.0, "0 = none"),
            _pair("guidance_times", times, -math.inf, math.inf, "times, as the network is told them"),
        )

    def weights(self, table: Table) -> float | tuple[float, ...]:
        """Of the table's rows; one number where all are alike. Raises ConfigError."""
        count = len(table)
        if callable(self.scale):
            weights = [
                _number(
                    f"guidance_scale: its value at progress {i / count:.3g}",
                    self.scale(i / count),
                    0.0,
                    MAX_SCALE,
                )
                for i in range(count)
            ]
        elif isinstance(self.scale, tuple):
            weights = list(self.scale)
        else:
            weights = [self.scale] * count
        if len(weights) != count:
            raise ConfigError(
                f"expected a weight for each of the {count} network evaluations of {table.name}, "
                f"got {len(weights)}",
                argument="guidance_scale",
            )
        if self.interval is not None:
            start, stop = self.interval
            weights = [w if start <= i / count < stop else 1.0 for i, w in enumerate(weights)]
        if self.sigmas is not None:
            low, high = self.sigmas
            if any(math.isnan(sigma) for sigma in table.sigma):
                raise ConfigError(
                    f"{table.name} does not know its noise levels; use guidance_interval=(start, stop)",
                    argument="guidance_sigmas",
                )
            weights = [
                w if low < sigma <= high else 1.0 for w, sigma in zip(weights, table.sigma, strict=True)
            ]
        if self.times is not None:
            # In float32: 1 - 0.8 is 0.2 to whoever says (0.2, 0.8), and to the network.
            with np.errstate(over="ignore"):  # an end beyond float32 is none
                low, high = np.array(self.times, dtype=np.float32)
            told = table.time.astype(np.float32)
            weights = [w if low <= t <= high else 1.0 for w, t in zip(weights, told, strict=True)]
        return weights[0] if len(set(weights)) == 1 else tuple(weights)

    @property
    def bounded(self) -> bool:
        """Whether it is confined to a part of the run."""
        return not (self.interval is self.sigmas is self.times is None)

    def guides(self) -> bool:
        """Whether any weight may differ from 1."""
        if isinstance(self.scale, tuple):
            return any(w != 1.0 for w in self.scale)
        return callable(self.scale) or self.scale != 1.0

    def to_dict(self) -> dict[str, Any]:
        """The arguments of ``sample`` that differ from none, and always guidance_scale."""
        named = {
            "guidance_scale": list(self.scale) if isinstance(self.scale, tuple) else self.scale,
            "guidance_interval": None if self.interval is None else list(self.interval),
            "guidance_sigmas": _closed(self.sigmas),
            "guidance_times": _closed(self.times),
            "guidance_rescale": self.rescale or None,
            "classifier_scale": self.classifier_scale or None,
        }
        return {name: value for name, value in named.items() if value is not None}


def _closed(pair: tuple[float, float] | None) -> list[float | str] | None:
    """As JSON, which has no number for an end that is infinite."""
    return None if pair is None else [str(v) if math.isinf(v) else v for v in pair]


def is_pair(value: Any) -> bool:
    """Whether this is one interval, not a list of them."""
    return (
        isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Real) for v in value)
    )


def _number(name: str, value: Any, low: float, high: float, meaning: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        note = f" ({meaning})" if meaning else ""
        raise ConfigError(f"expected a number from {low:g} to {high:g}{note}, got {value!r}", argument=name)
    return float(value)


def _pair(name: str, value: Any, low: float, high: float, meaning: str) -> tuple[float, float] | None:
    if value is None:
        return None
    if not is_pair(value) or len(value) != 2:
        raise ConfigError(f"expected (low, high), {meaning}, got {value!r}", argument=name)
    numbers = [OPEN.get(v, v) if isinstance(v, str) else v for v in value]
    first, last = (_number(name, v, low, high, meaning) for v in numbers)
    if not first < last:
        raise ConfigError(f"expected low < high, got {value!r}", argument=name)
    return first, last
