"""Noise that a caller of ``sample`` gives as tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...config import shown
from ...errors import ConfigError
from .given import Given, check_floats, per_sample
from .request import Request

if TYPE_CHECKING:
    from .engine import DiffusionEngine


def noised_request(
    engine: DiffusionEngine, n: int | None, noise: Any, step_noise: Any, **arguments: Any
) -> Request:
    """What ``engine.sample(n, noise=noise, step_noise=step_noise, **arguments)`` draws. Raises ConfigError."""
    # A run that begins later has its state in the noise, and one by seeds alone is refused.
    resolve = engine.request if noise is None else engine.resolved
    listed = isinstance(noise, (list, tuple))
    several = (listed or (isinstance(noise, Tensor) and noise.dim() == 1 + len(engine.shape))) and len(
        noise
    ) > 1
    request = resolve(len(noise) if n is None and several else n, **arguments)
    if noise is None and step_noise is None:
        return request
    return _with_noise(request, noise, step_noise, engine)


def _with_noise(request: Request, noise: Any, step_noise: Any, engine: DiffusionEngine) -> Request:
    count, shape, state, device = len(request.seeds), engine.shape, engine.state_shape, engine.device
    initial: Sequence[Tensor | None] = [None] * count
    added: Sequence[Tensor | None] = [None] * count
    if noise is not None:
        checked = check_floats("noise", noise, shape).reshape(-1, *state)
        initial = list(per_sample(checked, count, "noise").to(device))
    if step_noise is not None:
        rows = set(request.evaluations())
        if len(rows) > 1:
            raise ConfigError(
                f"the samples take {shown(sorted(rows))} network evaluations: give it for samples that take as many",
                argument="step_noise",
            )
        checked = check_floats("step_noise", step_noise, (*rows, *shape)).reshape(-1, *rows, *state)
        added = list(per_sample(checked, count, "step_noise").to(device))
    begun = [bool(plan.options.get("begin_index")) for plan in request.plans]
    given = tuple(
        # A run that begins later takes the state as it is: alpha 0, and a scale of 1.
        Given(initial=start, level=(0.0, 1.0) if late else None, step_noise=steps)
        for start, late, steps in zip(initial, begun, added, strict=True)
    )
    return dataclasses.replace(request, given=given)
