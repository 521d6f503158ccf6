"""What callers of a style engine give it, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from ...config import shown
from ...errors import ConfigError

MAX_STYLES = 64
LARGEST = 1 << 15  # pixels of a side


def pictures(value: Any, name: str, minimum: int) -> list[Tensor]:
    """A batch [n, 3, H, W], or a list of [3, H, W] of any sizes, as a list of float tensors. Raises ConfigError.

    minimum: the least side that the network can work on.
    """
    if isinstance(value, Tensor):
        if value.ndim != 4:
            raise ConfigError(f"expected [n, 3, H, W], got {list(value.shape)}", argument=name)
        found = list(value)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        found = list(value)
    else:
        raise ConfigError(
            f"expected a tensor [n, 3, H, W] or a list of [3, H, W], got {type(value).__name__}",
            argument=name,
        )
    if not found:
        raise ConfigError("expected at least one picture, got none", argument=name)
    for i, picture in enumerate(found):
        which = f"number {i}: " if len(found) > 1 else ""
        if not isinstance(picture, Tensor) or not picture.is_floating_point():
            got = picture.dtype if isinstance(picture, Tensor) else type(picture).__name__
            raise ConfigError(f"{which}expected floats in [-1, 1], got {got}", argument=name)
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise ConfigError(f"{which}expected [3, H, W], got {list(picture.shape)}", argument=name)
        height, width = picture.shape[1:]
        if min(height, width) < minimum:
            raise ConfigError(
                f"{which}is {width} x {height} pixels, this network needs {minimum} x {minimum} at least: enlarge it",
                argument=name,
            )
        if max(height, width) > LARGEST:
            raise ConfigError(
                f"{which}is {width} x {height} pixels; at most {LARGEST} on a side are supported",
                argument=name,
            )
        if not bool(torch.isfinite(picture).all()):
            raise ConfigError(f"{which}has values that are NaN or infinite", argument=name)
    return found


def strength(alpha: Any) -> float:
    """alpha. Raises ConfigError."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"expected a number from 0 to 1, got {shown(alpha)}", argument="alpha")
    return float(alpha)


def shares(weights: Any, count: int) -> list[float]:
    """A weight for each of `count` styles, with sum 1: `weights`, or equal ones. Raises ConfigError."""
    if weights is None:
        return [1.0 / count] * count
    if not isinstance(weights, Iterable) or isinstance(weights, (str, bytes, Mapping, Set)):
        raise ConfigError(f"expected a list of numbers, got {shown(weights)}", argument="weights")
    try:
        given = [_number(weight) for weight in weights]
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"expected a list of numbers, got {shown(weights)}", argument="weights") from None
    except OverflowError:
        raise ConfigError("a number is too large for a float", argument="weights") from None
    if len(given) != count:
        raise ConfigError(f"expected one for each of {count} styles, got {len(given)}", argument="weights")
    total = sum(given)  # fsum would raise where it overflows
    if not all(math.isfinite(w) and w >= 0 for w in given) or not 0 < total < math.inf:
        raise ConfigError(
            "expected finite numbers of at least 0, not all of them 0, whose sum is a float, got "
            f"{shown(weights)}",
            argument="weights",
        )
    return [weight / total for weight in given]


def _number(value: Any) -> float:
    """A real number, NumPy's and tensors of one element included. Raises TypeError, ValueError or OverflowError."""
    if isinstance(value, (str, bytes, bool)) or "bool" in str(getattr(value, "dtype", "")):
        raise TypeError
    return float(value)


def masks(value: Any, count: int, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """A mask float32 [count, H, W] for every picture. Raises ConfigError.

    value: [K, H, W], or [H, W] for one style, for all pictures; or a list of them, one for each picture. sizes: of the
    pictures, (height, width).
    """
    if not isinstance(value, (Tensor, Sequence)):
        raise ConfigError(
            f"expected a tensor [styles, H, W], or a list of them, got {type(value).__name__}",
            argument="mask",
        )
    given = [value] * len(sizes) if isinstance(value, Tensor) else list(value)
    if len(given) != len(sizes):
        raise ConfigError(
            f"expected one for each of {len(sizes)} pictures, got {len(given)}", argument="mask"
        )
    made = []
    for mask, size in zip(given, sizes, strict=True):
        if not isinstance(mask, Tensor):
            raise ConfigError(f"expected a tensor [styles, H, W], got {type(mask).__name__}", argument="mask")
        if mask.is_complex():
            raise ConfigError(f"expected values from 0 to 1, got {mask.dtype}", argument="mask")
        mask = mask[None] if mask.ndim == 2 else mask
        if tuple(mask.shape) != (count, *size):
            raise ConfigError(
                f"expected [{count}, {size[0]}, {size[1]}], one for each style and as large as the picture, got "
                f"{list(mask.shape)}",
                argument="mask",
            )
        mask = mask.float()
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ConfigError("expected values from 0 to 1", argument="mask")
        made.append(mask)
    return made
