"""log p(x) by the probability flow: the change of variables along an ordinary differential equation.

    log p(y_start) = log p(y_end) + integral of div(dy / du) from start to end

(Song et al. 2021, eq. 39; Chen et al. 2018), by fixed steps of an explicit Runge-Kutta method, or by torchdiffeq's
adaptive one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ....diffusion.probability_flow import ProbabilityFlow
from ....errors import FastgenError

# Butcher tables: nodes, the rows below the diagonal, weights.
METHODS: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "heun": ((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": (
        (0.0, 1 / 2, 1 / 2, 1.0),
        ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}
ADAPTIVE = "dopri5"

# y float64 [B, ...], u, number of the evaluation -> dy / du like y, and its divergence, float64 [K, B].
Field = Callable[[Tensor, float, int], tuple[Tensor, Tensor]]


class Ended(NamedTuple):
    """The state at noise, float64 [B, ...]; the integral of the divergence, float64 [K, B]; evaluations."""

    y: Tensor
    integral: Tensor
    evaluations: int


def fixed(field: Field, y: Tensor, draws: int, start: float, end: float, method: str, steps: int) -> Ended:
    """`steps` equal steps in u of a method in ``METHODS``. y: float64 [B, ...]; draws: K of `field`."""
    nodes, rows, weights = METHODS[method]
    step = (end - start) / steps
    integral = torch.zeros(draws, len(y), dtype=torch.float64, device=y.device)
    evaluations = 0
    for i in range(steps):
        slopes: list[Tensor] = []
        change = torch.zeros_like(y)
        for node, row, weight in zip(nodes, rows, weights, strict=True):
            state = y
            for factor, slope in zip(row, slopes, strict=True):
                if factor:
                    state = state + step * factor * slope
            # The last end exactly, which at pure noise is 0.
            u = end if i == steps - 1 and node == 1.0 else start + (i + node) * step
            slope, divergence = field(state, u, evaluations)
            slopes.append(slope)
            change += step * weight * slope
            integral += step * weight * divergence
            evaluations += 1
        y = y + change
    return Ended(y, integral, evaluations)


def adaptive(
    field: Field, y: Tensor, draws: int, start: float, end: float, rtol: float, atol: float
) -> Ended:
    """Dormand & Prince's method of torchdiffeq, with one step size for the whole batch.

    rtol, atol: of the elements of y, and of the integral for each element. Raises FastgenError without torchdiffeq.
    """
    odeint = _odeint()
    size, evaluations = y[0].numel(), 0

    def rate(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        at = min(max(float(u), start), end)  # a trial step may look past the end by rounding
        slope, divergence = field(state[0], at, 0)
        return slope, divergence / size

    ends = torch.tensor([start, end], dtype=torch.float64, device=y.device)
    nothing = torch.zeros(draws, len(y), dtype=torch.float64, device=y.device)
    found, integral = odeint(rate, (y, nothing), ends, rtol=rtol, atol=atol, method=ADAPTIVE)
    return Ended(found[-1], integral[-1] * size, evaluations)


def log_density(flow: ProbabilityFlow, ended: Ended) -> Tensor:
    """log p(z) in nats, float64 [K, B], of the z = x / alpha whose y was integrated."""
    size, scale = ended.y[0].numel(), flow.prior_scale
    squares = (ended.y / scale).square().flatten(1).sum(1)
    prior = -0.5 * squares - size * (0.5 * math.log(2 * math.pi) + math.log(scale))
    return prior + ended.integral + size * math.log(flow.shrinkage)


def require_adaptive() -> None:
    """Raise FastgenError where torchdiffeq is not there."""
    _odeint()


def _odeint() -> Callable[..., tuple[Tensor, Tensor]]:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise FastgenError(
            f"{ADAPTIVE} needs torchdiffeq: pip install torchdiffeq (or fastgen with its extra: fastgen[likelihood]); "
            "rk4 and heun, with steps=, do without",
            argument="solver",
        ) from error
    found: Callable[..., tuple[Tensor, Tensor]] = odeint
    return found
