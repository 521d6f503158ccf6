"""A solver as data: one row per network evaluation, read by one fused step kernel.

    x0  = clip(p x + q F)                          F = network output after guidance
    x'  = a . [x, x0, F, z, h1, h2, h3, h4]        z = fresh normal noise
    h_slot' = b . [x, x0, F, z, h1, h2, h3, h4]    old values on the right

Every common fixed-step solver is linear in what it remembers, so that its step count, order at the ends,
noise and guidance are rows, not branches. A solver writes its update with the unit vectors X, X0, F, Z, H[k]:
``x=alpha * X0 + sigma * (X - X0)``, and never touches an image.

Two things need more than a row, a number that is only known once the network has answered:

    dynamic threshold     x0 becomes clip(x0, s) / s, s a quantile of the sample's |x0|    Saharia et al. 2022
    Langevin step         the coefficients of x0 grow by g, those of z by sqrt(g),         Song et al. 2021
                          g = (|z| / |x0|)^2; the row's (p, q) give the score in place of x0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastgen_kernels.reverse_step import row

from ..config import shown
from ..errors import ConfigError

if TYPE_CHECKING:
    from .points import Point

WIDTH = row.H + row.MAX_SLOTS  # length of a coefficient vector
LEARNED_NONE, LEARNED_RANGE, LEARNED_VARIANCE = 0, 1, 2
LANGEVIN_NONE, LANGEVIN_SAMPLE, LANGEVIN_BATCH = 0, 1, 2
NO_THRESHOLD = (0.0, 0.0)
MAX_FLOAT32 = float(np.finfo(np.float32).max)

_UNITS = np.eye(WIDTH)
_UNITS.flags.writeable = False
X: np.ndarray = _UNITS[row.X]  # the state before the step
X0: np.ndarray = _UNITS[row.X0]  # the clipped estimate of the clean sample
F: np.ndarray = _UNITS[row.F]  # the network's output
Z: np.ndarray = _UNITS[row.Z]  # fresh standard normal noise
H: tuple[np.ndarray, ...] = tuple(_UNITS[row.H :])  # history slots

_WORDS: dict[torch.dtype, tuple[type[np.generic], type[np.generic]]] = {
    torch.float32: (np.float32, np.int32),
    torch.float64: (np.float64, np.int64),
}


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one run of a solver, R network evaluations. Arrays are NumPy, read-only, float64 or int64.

    name: the solver's name
    time: [R], the network's time input
    input_scale: [R], the network's input is input_scale * x
    p, q: [R], x0 = clip(p x + q F)
    clip: [R], bound of |x0|; inf = none
    slot: [R] int, history slot written, -1 = none
    noise_step: [R] int, `step` of the noise counter: the row's own index
    a, b: [R, 8], coefficients of x' and of the slot written, over [x, x0, F, z, h1 .. h4]
    log2_std: [R, 2], log2 of z's standard deviation at V = -1 and V = +1 (used where learned = 1)
    threshold: [R, 2], (ratio, largest) of the dynamic threshold s = clamp(quantile(|x0|, ratio), 1, largest), x0
        becomes clip(x0, -s, s) / s; a largest value below 1 is s itself; 0: none. Left out: none
    langevin: [R] int, step size by norms: LANGEVIN_NONE, LANGEVIN_SAMPLE (each sample's own) or LANGEVIN_BATCH (the
        means of |z| and |x0| over the batch, the authors' code; a sample then depends on its neighbours).
        Left out: none
    gradient: [R], by classifier guidance F becomes F + gradient * scale * d log p(label | x) / dx; 0: the table does
        not know what its network predicts. Left out: 0
    sigma: [R], the noise level sigma / alpha at which the network is asked; nan: not known. Left out: nan
    initial_scale: the run starts from x = initial_scale * standard normal
    learned: how the second half V of a network's channels scales z: 0 not at all (the network has no V), 1 by
        2 ** (lo + (V / 2 + 1 / 2) (hi - lo)) (Nichol & Dhariwal 2021, eq. 15), 2 by sqrt(V)

    Raises ConfigError if anything but `clip` and `sigma` is not finite, a number or a threshold is out of range, shapes
    do not fit, or a Langevin row is clipped, thresholded, or of learned variance.
    """

    name: str
    time: np.ndarray
    input_scale: np.ndarray
    p: np.ndarray
    q: np.ndarray
    clip: np.ndarray
    slot: np.ndarray
    noise_step: np.ndarray
    a: np.ndarray
    b: np.ndarray
    log2_std: np.ndarray
    initial_scale: float = 1.0
    learned: int = LEARNED_NONE
    threshold: np.ndarray = field(default_factory=lambda: np.zeros(2))  # for all rows alike
    langevin: np.ndarray = field(default_factory=lambda: np.zeros(()))
    gradient: np.ndarray = field(default_factory=lambda: np.zeros(()))
    sigma: np.ndarray = field(default_factory=lambda: np.full((), np.nan))

    def __post_init__(self) -> None:
        rows = len(self)
        shapes = {"a": (rows, WIDTH), "b": (rows, WIDTH), "log2_std": (rows, 2), "threshold": (rows, 2)}
        for name in _COLUMNS:
            array = _numbers(name, getattr(self, name))
            if name in _SPREAD and array.ndim < len(shapes.get(name, (rows,))):
                array = np.tile(array, (rows, 1) if name == "threshold" else rows)
            if array.shape != shapes.get(name, (rows,)):
                raise ConfigError(
                    f"expected shape {shapes.get(name, (rows,))}, got {array.shape}", argument=name
                )
            if name not in ("clip", "sigma") and not np.all(np.isfinite(array)):
                first = int(np.argwhere(~np.isfinite(array))[0][0])
                raise ConfigError(
                    f"coefficient {name} of row {first} (t = {self.time[first]}) is not finite: "
                    "the schedule's noise is too small or too large there for this solver",
                    argument=self.name,
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not np.all(self.clip > 0):
            raise ConfigError(
                f"clip must be positive (inf = none), got {self.clip.min()}", argument=self.name
            )
        if self.slot.min() < -1 or self.slot.max() >= row.MAX_SLOTS:
            raise ConfigError(
                f"expected -1 to {row.MAX_SLOTS - 1}, got {self.slot.min()} to {self.slot.max()}",
                argument="slot",
            )
        if self.noise_step.min() < 0 or self.noise_step.max() >= 1 << 32:
            raise ConfigError(
                f"expected 0 to 2^32 - 1, got {self.noise_step.min()} to {self.noise_step.max()}",
                argument="noise_step",
            )
        if isinstance(self.initial_scale, bool) or not isinstance(
            self.initial_scale, (int, float, np.number)
        ):
            raise ConfigError(f"expected a number, got {shown(self.initial_scale)}", argument="initial_scale")
        if not 0 <= self.initial_scale <= MAX_FLOAT32:
            raise ConfigError(
                f"expected a number from 0 to {MAX_FLOAT32:.3g}, got {shown(self.initial_scale)}",
                argument="initial_scale",
            )
        if self.learned not in (LEARNED_NONE, LEARNED_RANGE, LEARNED_VARIANCE):
            raise ConfigError(f"expected 0, 1 or 2, got {self.learned!r}", argument="learned")
        self._check_adjustments()

    def __len__(self) -> int:
        """R, the number of network evaluations."""
        return len(self.time)

    def _check_adjustments(self) -> None:
        ratio, largest = self.threshold.T
        on = largest != 0
        if np.any(on & ((ratio <= 0) | (ratio > 1) | (largest < 0))):
            raise ConfigError(
                f"threshold: expected a ratio above 0 and up to 1 and a largest value above 0 (0 = "
                f"none), got {self.threshold[on][0].tolist()}",
                argument=self.name,
            )
        steps = self.langevin != LANGEVIN_NONE
        if not np.all(np.isin(self.langevin, (LANGEVIN_NONE, LANGEVIN_SAMPLE, LANGEVIN_BATCH))):
            raise ConfigError(f"expected 0, 1 or 2, got {self.langevin.tolist()}", argument="langevin")
        if np.any(steps & (on | np.isfinite(self.clip))) or (np.any(steps) and self.learned != LEARNED_NONE):
            raise ConfigError(
                "such a row's x0 is the score: no clip, threshold or learned variance", argument="langevin"
            )
        if np.any(on & np.isfinite(self.clip)):
            raise ConfigError("it is a clip of its own; expected clip = inf beside it", argument="threshold")

    def check_float32(self) -> None:
        """Raise ConfigError, by name, where a number is too large for float32, the type that engines step in."""
        if column := self._beyond_float32:
            raise ConfigError(
                f"coefficient {column}: expected numbers up to {MAX_FLOAT32:.3g}, the largest of float32",
                argument=self.name,
            )

    def check_prediction(self, prediction_type: str) -> None:
        """Raise ConfigError where the table is not for a network that predicts `prediction_type`.

        A plain table says nothing about that, and passes; one that was made from a scheduler may know.
        """

    @cached_property
    def _beyond_float32(self) -> str | None:
        for name in _REAL:
            values = getattr(self, name)
            if np.any(np.isfinite(values) & (np.abs(values) > MAX_FLOAT32)):
                return name
        return None

    @property
    def slots(self) -> int:
        """How many history slots each sample needs: one more than the highest slot written."""
        return int(self.slot.max()) + 1

    @cached_property
    def needs_noise(self) -> list[bool]:
        """For each row, whether it reads z, or the length of z."""
        return ((self.a[:, row.Z] != 0) | (self.b[:, row.Z] != 0) | (self.langevin != LANGEVIN_NONE)).tolist()

    @cached_property
    def adjusted(self) -> tuple[str, ...]:
        """What rows need beyond themselves: "threshold", "langevin"."""
        needed = {"threshold": np.any(self.threshold[:, 1]), "langevin": np.any(self.langevin)}
        return tuple(name for name, any_row in needed.items() if any_row)

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(np.any(self.a[:, row.Z]) or np.any(self.b[:, row.Z]))


_SPREAD = ("threshold", "langevin", "gradient", "sigma")  # one entry stands for all rows
_COLUMNS = (
    *("time", "input_scale", "p", "q", "clip", "slot", "noise_step", "a", "b", "log2_std"),
    *_SPREAD,
)


_INTEGERS = ("slot", "noise_step", "langevin")
_REAL = tuple(name for name in _COLUMNS if name not in (*_INTEGERS, "clip", "sigma"))


def _numbers(name: str, values: Any) -> np.ndarray:
    """A column as float64, or int64 where it is one of whole numbers. Raises ConfigError."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"expected an array of numbers, got {shown(values)}", argument=name) from None
    if name not in _INTEGERS:
        return array
    if not np.all(np.isfinite(array) & (np.abs(array) < 1 << 53)) or np.any(array != np.floor(array)):
        raise ConfigError(f"expected whole numbers, got {shown(values)}", argument=name)
    return array.astype(np.int64)


@dataclass
class TableBuilder:
    """Collects rows written with X, X0, F, Z, H; every argument of `add` that is left out has no effect.

    clip, threshold: what every row does with x0 (but for Langevin rows); a threshold, (ratio, largest), instead of a
    clip.
    """

    name: str
    clip: float = np.inf
    threshold: tuple[float, float] = NO_THRESHOLD
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        time: float,
        x0: tuple[float, float],
        x: np.ndarray,
        *,
        slot: int = -1,
        history: np.ndarray | None = None,
        input_scale: float = 1.0,
        log2_std: tuple[float, float] = (0.0, 0.0),
        langevin: int = LANGEVIN_NONE,
        gradient: float = 0.0,
        sigma: float = np.nan,
    ) -> None:
        """One network evaluation: x0 = (p, q) of the estimate, x the new state, history the new slot.

        langevin: with LANGEVIN_SAMPLE or LANGEVIN_BATCH, x0 gives the score (or any multiple of it) instead, and
        ``x=X + c * X0 + d * Z`` becomes x + c g score + d sqrt(g) z.
        """
        b = np.zeros(WIDTH) if history is None else history
        self._rows.append(
            {
                "time": time,
                "input_scale": input_scale,
                "p": x0[0],
                "q": x0[1],
                "clip": np.inf if langevin else self.clip,
                "slot": slot,
                "noise_step": len(self._rows),
                "a": x,
                "b": b,
                "log2_std": log2_std,
                "threshold": NO_THRESHOLD if langevin else self.threshold,
                "langevin": langevin,
                "gradient": gradient,
                "sigma": sigma,
            }
        )

    def evaluate(
        self,
        point: Point,
        x: np.ndarray,
        *,
        slot: int = -1,
        history: np.ndarray | None = None,
        log2_std: tuple[float, float] = (0.0, 0.0),
        langevin: int = LANGEVIN_NONE,
    ) -> None:
        """`add` at `point`: its time, its input scale, and for X0 its estimate of x_0, in a Langevin row of epsilon."""
        # epsilon = r x + s F, and guidance moves epsilon by -sigma times the gradient. Of pure noise a classifier knows
        # nothing, and there s may be 0.
        s = point.noise[1]
        self.add(
            point.time,
            point.noise if langevin else point.x0,
            x,
            slot=slot,
            history=history,
            input_scale=point.input_scale,
            log2_std=log2_std,
            langevin=langevin,
            gradient=-point.sigma / s if s and point.alpha else 0.0,
            sigma=point.sigma / point.alpha if point.alpha else np.inf,
        )

    def table(self, *, initial_scale: float = 1.0, learned: int = LEARNED_NONE) -> Table:
        """The finished table. Raises ConfigError if a coefficient is not finite."""
        columns = {name: np.array([r[name] for r in self._rows]) for name in self._rows[0]}
        return Table(name=self.name, **columns, initial_scale=initial_scale, learned=learned)


def pack(
    table: Table,
    offset: int,
    guidance_scale: float | Sequence[float] | np.ndarray = 1.0,
    dtype: torch.dtype = torch.float32,
    guidance_rescale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Write `table` in the kernel's row layout (`fastgen_kernels.reverse_step.row`), on the CPU.

    offset: index in the pool of the table's first row, at least 1: row 0 of a pool is the idle row
    guidance_scale: weight of classifier-free guidance, one number or one per row; 1 = no guidance
    dtype: float32 or float64, the state's
    guidance_rescale: Lin et al. 2023, section 3.4: phi from 0 (none) to 1

    Returns (rows [R, 32], times [R]), both `dtype`. The last row's `next` is 0, the idle row, and its next
    input scale 1. ConfigError for a wrong offset, dtype or guidance, or a coefficient too large for `dtype`.
    """
    if offset < 1:
        raise ConfigError(f"expected at least 1 (row 0 is the idle row), got {offset}", argument="offset")
    count = len(table)
    guidance = np.asarray(guidance_scale, dtype=np.float64)
    if guidance.shape not in ((), (count,)) or not np.all(np.isfinite(guidance)):
        raise ConfigError(
            f"expected a finite number or {count} of them, got {guidance_scale!r}", argument="guidance_scale"
        )
    words, integers = _empty(count, dtype)
    with np.errstate(over="ignore"):  # reported below, by name
        words[:, row.P], words[:, row.Q] = table.p, table.q
        words[:, row.GUIDANCE] = guidance
        words[:, row.CLIP] = table.clip
        words[:, row.NEXT_SCALE] = np.append(table.input_scale[1:], 1.0)
        words[:, row.A : row.A + WIDTH] = table.a
        words[:, row.B : row.B + WIDTH] = table.b
        words[:, row.LOG2_STD_MIN : row.LOG2_STD_MAX + 1] = table.log2_std
        words[:, row.INPUT_SCALE] = table.input_scale
        # The share above, not below: 1 - .995 keeps more of its digits.
        words[:, row.THRESHOLD_TAIL] = np.where(table.threshold[:, 1] != 0, 1.0 - table.threshold[:, 0], 0.0)
        words[:, row.THRESHOLD_MAX] = table.threshold[:, 1]
        words[:, row.RESCALE] = guidance_rescale
        words[:, row.LANGEVIN] = table.langevin
        words[:, row.GRADIENT] = table.gradient
    unbounded = np.delete(words, row.CLIP, axis=1)
    if not np.all(np.isfinite(unbounded)):
        raise ConfigError(
            f"a coefficient is too large for {dtype}; pack it as torch.float64", argument=table.name
        )
    integers[:, row.SLOT] = table.slot
    integers[:, row.NOISE_STEP] = table.noise_step
    integers[:, row.NEXT] = np.append(np.arange(offset + 1, offset + count), 0)
    return torch.from_numpy(words), torch.from_numpy(table.time.astype(words.dtype))


def idle_row(dtype: torch.dtype = torch.float32) -> Tensor:
    """Row 0 of every pool, [32]: leaves x and all slots as they are, makes no noise, is its own next row."""
    words, integers = _empty(1, dtype)
    words[0, [row.GUIDANCE, row.NEXT_SCALE, row.INPUT_SCALE, row.A + row.X]] = 1.0
    words[0, row.CLIP] = np.inf
    integers[0, row.SLOT] = -1
    return torch.from_numpy(words[0])


def _empty(count: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """`count` rows of zeros, and the same memory seen as integers of the word's width."""
    if dtype not in _WORDS:
        raise ConfigError(f"expected torch.float32 or torch.float64, got {dtype}", argument="dtype")
    real, integer = _WORDS[dtype]
    words = np.zeros((count, row.ROW_WORDS), dtype=real)
    return words, words.view(integer)
