"""Samples that are done, before they are handed out: a number that failed is said, never drawn in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..images import Range

MANY = 0.05  # share of values far outside of a range that an image would seldom have
SHOWN = 20  # seeds in a warning
ADVICE = {
    torch.float16: "float16 overflows at 65504; take dtype='bfloat16' or 'float32' (--dtype)",
    torch.bfloat16: "dtype='float32' (--dtype) may help; engine.verify() compares the network with float64",
}
FLOAT32 = "The network, or the solver with these options, made them; engine.verify() looks at the network"


def finite(samples: Tensor) -> Tensor:
    """bool [n]: whether all values of samples [n, ...] are finite. On their device, without waiting for it."""
    return samples.isfinite().flatten(1).all(1)


def warn_not_finite(flags: Tensor, seeds: Sequence[int], dtype: torch.dtype) -> None:
    """A warning that names the seeds whose samples are not finite. Waits for the device.

    flags: :func:`finite` of the samples. dtype: that the networks run in.
    """
    failed = [seed for seed, good in zip(seeds, flags.tolist(), strict=True) if not good]
    if failed:
        shown = ", ".join(map(str, failed[:SHOWN])) + (", ..." if len(failed) > SHOWN else "")
        warnings.warn(
            f"{len(failed)} of {len(seeds)} samples are not finite (NaN or infinite), those of the seeds {shown}. "
            f"{ADVICE.get(dtype, FLOAT32)}",
            stacklevel=3,
        )


def check_finite(
    images: Sequence[Tensor], argument: str, done: str, number: Callable[[int], int] = int
) -> None:
    """Raise ConfigError that names an image whose result has values that are not finite. Waits for the device.

    images: results, of any sizes. argument: the inputs' name. done: what was done to them, "translated". number: of the
    input, by that of the result.
    """
    flags = torch.stack([image.isfinite().all() for image in images])
    if not bool(flags.all()):  # the one wait for the device
        raise ConfigError(
            f"image {number(int(flags.long().argmin()))} is not finite (NaN or infinite) once {done}: are its values "
            "finite, and in [-1, 1]? engine.verify() looks at the network",
            argument=argument,
        )


def far_outside(sample: Tensor, value_range: Range) -> Tensor:
    """float32 []: the share of values that lie outside of the range by more than a tenth of its width."""
    low, high = value_range
    return ((sample - (low + high) / 2).abs() > 0.6 * (high - low)).float().mean()


def warn_clamped(share: float, value_range: Range) -> None:
    """A warning that many values were clamped to a range that nobody has chosen."""
    if share >= MANY:
        warnings.warn(
            f"{share:.0%} of the values lay far outside of {list(value_range)}, the range of images, and were clamped "
            "to it. If the network draws no such images, say value_range=None (or its range) in from_module, "
            "if it does, value_range=(-1, 1)",
            stacklevel=5,
        )
