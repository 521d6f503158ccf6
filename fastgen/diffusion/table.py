"""A solver as data: one row a network evaluation, read by one fused step kernel.

    x0  = clip(p x + q F)                          F = network output after guidance
    x'  = a . [x, x0, F, z, h1, h2, h3, h4]        z = fresh normal noise
    h_slot' = b . [x, x0, F, z, h1, h2, h3, h4]    old values on the right

Every common fixed-step solver is linear in what it remembers, so that its step count, order at the ends,
noise and guidance are rows, not branches. A solver writes its update with the unit vectors X, X0, F, Z, H[k]:
``x=alpha * X0 + sigma * (X - X0)``, and never touches a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastgen_kernels.reverse_step import row

from ..errors import ConfigError

if TYPE_CHECKING:
    from .points import Point

Array = TypeVar("Array", Tensor, np.ndarray)

WIDTH = row.H + row.MAX_SLOTS  # length of a coefficient vector
LEARNED_NONE, LEARNED_RANGE, LEARNED_VARIANCE = 0, 1, 2

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
    initial_scale: the run starts from x = initial_scale * standard normal
    learned: how the second half V of a network's channels scales z: 0 not at all (the network has no V), 1 by
        2 ** (lo + (V / 2 + 1 / 2) (hi - lo)) (Nichol & Dhariwal 2021, eq. 15), 2 by sqrt(V)

    Raises ConfigError if anything but `clip` is not finite, ValueError if shapes do not fit.
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

    def __post_init__(self) -> None:
        rows = len(self)
        shapes = {"a": (rows, WIDTH), "b": (rows, WIDTH), "log2_std": (rows, 2)}
        for name in ("time", "input_scale", "p", "q", "clip", "slot", "noise_step", "a", "b", "log2_std"):
            dtype = np.int64 if name in ("slot", "noise_step") else np.float64
            array = np.array(getattr(self, name), dtype=dtype)
            if array.shape != shapes.get(name, (rows,)):
                raise ValueError(f"{name}: expected shape {shapes.get(name, (rows,))}, got {array.shape}")
            if name != "clip" and not np.all(np.isfinite(array)):
                first = int(np.argwhere(~np.isfinite(array))[0][0])
                raise ConfigError(
                    f"{self.name}: coefficient {name} of row {first} (t = {self.time[first]}) is not finite: "
                    "the schedule's noise is too small or too large there for this solver"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not np.all(self.clip > 0):
            raise ConfigError(f"{self.name}: clip must be positive (inf = none), got {self.clip.min()}")
        if self.slot.min() < -1 or self.slot.max() >= row.MAX_SLOTS:
            raise ValueError(
                f"slot: expected -1 to {row.MAX_SLOTS - 1}, got {self.slot.min()} to {self.slot.max()}"
            )
        if self.learned not in (LEARNED_NONE, LEARNED_RANGE, LEARNED_VARIANCE):
            raise ValueError(f"learned: expected 0, 1 or 2, got {self.learned!r}")

    def __len__(self) -> int:
        """R, the number of network evaluations."""
        return len(self.time)

    @property
    def slots(self) -> int:
        """How many history slots a sample needs: one more than the highest slot written."""
        return int(self.slot.max()) + 1

    @cached_property
    def needs_noise(self) -> list[bool]:
        """For each row, whether it reads z."""
        return ((self.a[:, row.Z] != 0) | (self.b[:, row.Z] != 0)).tolist()

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(np.any(self.a[:, row.Z]) or np.any(self.b[:, row.Z]))


@dataclass
class TableBuilder:
    """Collects rows written with X, X0, F, Z, H; every argument of `add` that is left out has no effect."""

    name: str
    clip: float = np.inf
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
    ) -> None:
        """One network evaluation: x0 = (p, q) of the estimate, x the new state, history the new slot."""
        b = np.zeros(WIDTH) if history is None else history
        self._rows.append(
            {
                "time": time,
                "input_scale": input_scale,
                "p": x0[0],
                "q": x0[1],
                "clip": self.clip,
                "slot": slot,
                "noise_step": len(self._rows),
                "a": x,
                "b": b,
                "log2_std": log2_std,
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
    ) -> None:
        """`add` at `point`: its time, its estimate of x_0, its input scale."""
        self.add(
            point.time,
            point.x0,
            x,
            slot=slot,
            history=history,
            input_scale=point.input_scale,
            log2_std=log2_std,
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
) -> tuple[Tensor, Tensor]:
    """Write `table` in the kernel's row layout (`fastgen_kernels.reverse_step.row`), on the CPU.

    offset: index in the pool of the table's first row, at least 1: row 0 of a pool is the idle row
    guidance_scale: weight of classifier-free guidance, one number or one a row; 1 = no guidance
    dtype: float32 or float64, the state's

    Returns (rows [R, 32], times [R]), both `dtype`. The last row's `next` is 0, the idle row, and its next
    input scale 1. ValueError for a wrong offset, dtype or guidance, or a coefficient too large for `dtype`.
    """
    if offset < 1:
        raise ValueError(f"offset: expected at least 1 (row 0 is the idle row), got {offset}")
    count = len(table)
    guidance = np.asarray(guidance_scale, dtype=np.float64)
    if guidance.shape not in ((), (count,)) or not np.all(np.isfinite(guidance)):
        raise ValueError(
            f"guidance_scale: expected a finite number or {count} of them, got {guidance_scale!r}"
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
    unbounded = np.delete(words, row.CLIP, axis=1)
    if not np.all(np.isfinite(unbounded)):
        raise ValueError(f"{table.name}: a coefficient is too large for {dtype}; pack it as torch.float64")
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


def run(
    table: Table,
    network: Callable[[Array, float], Array],
    x: Array,
    noise: Sequence[Array] | Array,
) -> Array:
    """Interpret `table` in plain PyTorch or NumPy, in `x`'s dtype: the twin that judges the fast paths.

    network: called as ``network(input_scale * x, time)``; returns F, x's shape; where ``table.learned`` is
        not 0 twice the channels (axis 1): F, then V
    x: the initial state, ``table.initial_scale`` times standard normal, [B, C, ...]
    noise: noise[i] is row i's standard normal z, x's shape; read only where a row uses it

    Returns the state after the last row.
    """
    state: Any = x
    slots: list[Any] = [x] * row.MAX_SLOTS

    def combine(coefficients: np.ndarray, terms: list[Any]) -> Any:
        # What has no coefficient is left out, not multiplied by 0: a fresh slot may hold NaN.
        used = [float(c) * v for c, v in zip(coefficients, terms, strict=True) if c != 0.0]
        return sum(used[1:], start=used[0]) if used else 0.0 * state

    for i in range(len(table)):
        out: Any = network(float(table.input_scale[i]) * state, float(table.time[i]))
        z: Any = noise[i]
        if table.learned != LEARNED_NONE:
            channels = x.shape[1]
            out, v = out[:, :channels], out[:, channels:]
            if table.learned == LEARNED_RANGE:
                low, high = (float(word) for word in table.log2_std[i])
                z = 2.0 ** (low + (v * 0.5 + 0.5) * (high - low)) * z
            else:
                z = v**0.5 * z
        p, q, bound = float(table.p[i]), float(table.q[i]), float(table.clip[i])
        x0 = (p * state + q * out).clip(-bound, bound)
        terms = [state, x0, out, z, *slots]
        if table.slot[i] >= 0:
            slots[int(table.slot[i])] = combine(table.b[i], terms)
        state = combine(table.a[i], terms)  # over `terms`: the slot's old value
    return state


def _empty(count: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """`count` rows of zeros, and the same memory seen as integers of the word's width."""
    if dtype not in _WORDS:
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    real, integer = _WORDS[dtype]
    words = np.zeros((count, row.ROW_WORDS), dtype=real)
    return words, words.view(integer)
