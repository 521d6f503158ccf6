"""What a caller gives as tensors beside a request: images, masks, noises; checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import shown
from ...errors import ConfigError
from ...images import Range
from ...runtime.device import dtype_name
from .queue import Known


@dataclass(frozen=True, eq=False)
class Given:
    """Of one sample, see ``SampleRequest``."""

    initial: Tensor | None = None
    image: Tensor | None = None
    level: tuple[float, float] | None = None
    step_noise: Tensor | None = None
    known: Known | None = None


def check_images(name: str, images: Any, shape: Sequence[int], value_range: Range | None) -> Tensor:
    """float32 [n, C, H, W] of images float [n, C, H, W], or [C, H, W] for one, with values in the range.

    Raises ConfigError about the argument `name`, also for a model of rows.
    """
    check_draws_images(name, shape)
    found = check_floats(name, images, shape)
    check_range(name, found, value_range)
    return found


def check_draws_images(name: str, shape: Sequence[int]) -> None:
    """Raise ConfigError about the argument `name` where a model's samples are rows."""
    if len(shape) != 3:
        raise ConfigError("this model draws rows of numbers, not images", argument=name)


def check_floats(name: str, values: Any, shape: Sequence[int]) -> Tensor:
    """float32 [n, *shape] of finite values, float [n, *shape], or [*shape] for one. Raises ConfigError."""
    wanted = ", ".join(map(str, shape))
    if isinstance(values, (list, tuple)) and values and all(isinstance(v, Tensor) for v in values):
        if len({v.shape for v in values}) > 1:
            raise ConfigError(
                f"expected tensors of one shape [{wanted}], got {shown([list(v.shape) for v in values])}",
                argument=name,
            )
        values = torch.stack(list(values))
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = f"a {dtype_name(values.dtype)} tensor" if isinstance(values, Tensor) else shown(values)
        raise ConfigError(f"expected a float tensor [n, {wanted}], got {got}", argument=name)
    if values.dim() == len(shape):
        values = values[None]
    if tuple(values.shape[1:]) != tuple(shape) or not len(values):
        raise ConfigError(
            f"expected shape [n, {wanted}], n at least 1, got {list(values.shape)}", argument=name
        )
    found = values.detach().float()
    if not bool(found.isfinite().all()):
        raise ConfigError("has values that are NaN or infinite", argument=name)
    return found


def check_range(name: str, values: Tensor, value_range: Range | None) -> None:
    """Raise ConfigError where `values` leave the range that the engine's images have."""
    if value_range is None:
        return
    low, high = value_range
    least, most = float(values.min()), float(values.max())
    if least < low or most > high:
        raise ConfigError(
            f"expected values from {low:g} to {high:g}, got {least:.6g} to {most:.6g}: scale them (uint8: "
            "x / 127.5 - 1), or clamp what resizing has overshot",
            argument=name,
        )


def check_mask(mask: Any, count: int, shape: Sequence[int]) -> Tensor:
    """float32 [n, C, H, W] in [0, 1]: 1 where pixels are to be filled in. Raises ConfigError.

    mask: bool or float, [H, W], [1 or C, H, W] or [1 or n, 1 or C, H, W].
    """
    channels, height, width = shape
    one = "1" if channels == 1 else f"1 or {channels}"
    wanted = (
        f"[{height}, {width}] for all images, or one mask per image, [{count}, {one}, {height}, {width}] (of three "
        f"dimensions it is one mask, [{one}, {height}, {width}])"
    )
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        got = f"a {dtype_name(mask.dtype)} tensor" if isinstance(mask, Tensor) else shown(mask)
        raise ConfigError(
            f"expected a bool or float tensor {wanted}, True or 1 where pixels are to be filled in, got {got}",
            argument="mask",
        )
    sizes = tuple(mask.shape)
    fits = sizes[-2:] == (height, width) and (
        len(sizes) == 2
        or (len(sizes) == 3 and sizes[0] in (1, channels))
        or (len(sizes) == 4 and sizes[0] in (1, count) and sizes[1] in (1, channels))
    )
    if not fits:
        raise ConfigError(f"expected shape {wanted}, got {list(sizes)}", argument="mask")
    values = mask.detach().float()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ConfigError(
            f"expected values from 0 (known) to 1 (to be filled in), got {float(values.min()):.6g} to "
            f"{float(values.max()):.6g}",
            argument="mask",
        )
    if not bool((values > 0).any()):
        raise ConfigError("is 0 everywhere: there is nothing to fill in", argument="mask")
    return values.reshape(*[1] * (4 - len(sizes)), *sizes).expand(count, channels, height, width)


def check_strengths(strength: Any, count: int) -> list[float]:
    """One per sample, above 0 and up to 1. Raises ConfigError."""
    if isinstance(strength, Tensor):
        strength = strength.tolist()
    listed = list(strength) if isinstance(strength, (list, tuple)) else [strength] * count
    if len(listed) != count:
        raise ConfigError(
            f"expected one number, or one per image ({count}), got {len(listed)}", argument="strength"
        )
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise ConfigError(f"expected a number above 0, up to 1, got {shown(value)}", argument="strength")
    return [float(value) for value in listed]


def per_sample(values: Tensor, count: int, name: str) -> Tensor:
    """`values` [1 or n, ...] for `count` samples. Raises ConfigError."""
    if len(values) not in (1, count):
        wanted = f"expected 1 or {count}, one per sample" if count > 1 else "expected 1, for one sample"
        raise ConfigError(f"{wanted}, got {len(values)}", argument=name)
    return values.expand(count, *values.shape[1:])
