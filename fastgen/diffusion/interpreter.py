"""A table run row by row in plain PyTorch or NumPy, in the input's dtype: the twin that judges the fast paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastgen_kernels.reverse_step import row

from .table import LANGEVIN_BATCH, LEARNED_NONE, LEARNED_RANGE, Table

Array = TypeVar("Array", Tensor, np.ndarray)


def run(
    table: Table,
    network: Callable[[Array, float], Array],
    x: Array,
    noise: Sequence[Array] | Array,
) -> Array:
    """The state after the last row of `table`.

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
        ratio, largest = (float(word) for word in table.threshold[i])
        if largest:
            s = _by_sample(_quantile(abs(x0), ratio).clip(1.0, largest), x0)
            x0 = (x0 / s).clip(-1.0, 1.0)
        if mode := int(table.langevin[i]):
            noise_norm, score_norm = _norms(z), _norms(x0)
            if mode == LANGEVIN_BATCH:
                noise_norm, score_norm = noise_norm.mean(), score_norm.mean()
            root = noise_norm / score_norm  # of g
            x0, z = x0 * _by_sample(root**2, x0), z * _by_sample(root, z)
        terms = [state, x0, out, z, *slots]
        if table.slot[i] >= 0:
            slots[int(table.slot[i])] = combine(table.b[i], terms)
        state = combine(table.a[i], terms)  # over `terms`: the slot's old value
    return state


def _quantile(values: Any, ratio: float) -> Any:
    """[B]: by linear interpolation, over everything but the first axis."""
    flat = values.reshape(len(values), -1)
    return (
        torch.quantile(flat, ratio, dim=1) if isinstance(flat, Tensor) else np.quantile(flat, ratio, axis=1)
    )


def _norms(values: Any) -> Any:
    """[B]: Euclidean, over everything but the first axis."""
    return (values.reshape(len(values), -1) ** 2).sum(1) ** 0.5


def _by_sample(scalars: Any, like: Any) -> Any:
    """Scalars [B], or one for all, so that they multiply `like` [B, ...]."""
    return scalars if scalars.ndim == 0 else scalars.reshape(-1, *[1] * (like.ndim - 1))
