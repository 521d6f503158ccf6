"""The reverse step as its formula reads, a sample at a time in float64: independent of the package."""

import math
import struct

import numpy as np
import torch
from torch import Tensor

from . import philox_oracle


def integer(value: float, width: int) -> int:
    """A row's integer word from the float that carries its bits."""
    return struct.unpack({4: "<i", 8: "<q"}[width], struct.pack({4: "<f", 8: "<d"}[width], value))[0]


def reverse_step(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """x_next, h_next, y as float64 [as the op's outputs], and the next cursors."""
    batch, channels = x.shape[:2]
    width = rows.element_size()
    raw = rows.numpy()
    x_next, h_next = x.double().clone(), h.double().clone()
    y = torch.empty(F.shape[0], *x.shape[1:], dtype=torch.float64)
    cursors = []
    for i in range(batch):
        p, q, w, clip, scale = (float(v) for v in raw[i, :5])
        slot, step, following = (integer(raw[i, word], width) for word in (5, 6, 7))
        a, b = raw[i, 8:16].astype(np.float64), raw[i, 16:24].astype(np.float64)
        state, out = x[i].double().numpy(), F[i, :channels].double().numpy()
        if F.shape[0] == 2 * batch:
            unconditional = F[batch + i, :channels].double().numpy()
            out = unconditional + w * (out - unconditional)
        x0 = np.clip(p * state + q * out, -clip, clip)
        if noise is None:
            z = philox_oracle.normals(int(seeds[i]), step, 1, state.size).reshape(state.shape)
        else:
            z = noise[i].double().numpy()
        V = F[i, channels:].double().numpy()
        if learned == 1:
            low, high = float(raw[i, 24]), float(raw[i, 25])
            z = z * np.exp((low + (V + 1) / 2 * (high - low)) * math.log(2))
        elif learned == 2:
            z = z * np.sqrt(np.maximum(V, 0))
        terms = [state, x0, out, z, *(h[k, i].double().numpy() for k in range(h.shape[0]))]

        def total(c, terms=terms):
            return torch.from_numpy(
                sum(c[k] * term for k, term in enumerate(terms) if c[k] != 0) + np.zeros(x[0].shape)
            )

        x_next[i] = total(a)
        if slot >= 0:
            h_next[slot, i] = total(b)
        y[i] = scale * x_next[i]
        if F.shape[0] == 2 * batch:
            y[batch + i] = y[i]
        cursors.append(following)
    return x_next, h_next, y, cursors
