"""Data that is handed to a flow, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...config import shown
from ...errors import ConfigError
from ...models.flow.flow import Flow
from ...runtime.device import dtype_name


def check_floats(name: str, x: Any, shape: Sequence[int]) -> None:
    """Raise ConfigError, about the argument `name`, unless `x` is a float tensor [n, *shape]."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        wanted = ", ".join(map(str, shape))
        given = f"{dtype_name(x.dtype)} tensor" if isinstance(x, Tensor) else shown(x)
        raise ConfigError(f"expected a float tensor [n, {wanted}], got {given}", argument=name)
    check_shape(name, x, shape)


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Raise ConfigError, about the argument `name`, unless `x` is [n, *shape]."""
    if tuple(x.shape[1:]) != tuple(shape) or len(x) == 0:
        raise ConfigError(
            f"expected shape [n, {', '.join(map(str, shape))}], n at least 1, got {list(x.shape)}",
            argument=name,
        )


def check_support(flow: Flow, x: Tensor) -> None:
    """Raise ConfigError that names a value of `x` where the flow has no density. x: images in [-1, 1], of levels."""
    images = flow.levels is not None
    outside = flow.outside((x + 1) / 2 if images else x)
    if outside is not None and bool(outside.any()):
        where = outside.nonzero()[0].tolist()
        raise ConfigError(
            f"its value {x[tuple(where)].item():.9g} at {where} lies where this flow has no density"
            f"{', which is of images in [-1, 1]' if images else ''}; clamp it (resizing overshoots)",
            argument="x",
        )
