"""Bits per dimension: how well a flow predicts data, and what kind of number that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import shown
from ...errors import ConfigError
from ..estimates import Estimates

GRID = 1e-3  # of the distance between levels: how far an image's values may lie from them


@dataclass(frozen=True)
class BitsPerDim(Estimates):
    """-log2 of a sample's probability, divided by its number of dimensions.

    values: float64 [n], on the CPU. kind: what they are.
        "exact": the data is continuous; of its density, which may exceed 1, so that values may be negative.
        "bound": of levels, by one dequantisation sample each: its expectation is an upper bound.
        "importance-weighted bound": by `samples` of them (Burda et al. 2016), a tighter bound, which tends to the
            exact value as they grow.
    """

    def to_dict(self) -> dict[str, Any]:
        """Its mean and what it is, as JSON types."""
        error = self.standard_error
        return {
            "bits_per_dim": self.mean,
            "standard_error": None if math.isnan(error) else error,
            "kind": self.kind,
            "samples": self.samples,
            "count": len(self.values),
        }

    def __str__(self) -> str:
        error = self.standard_error
        spread = "" if math.isnan(error) else f" +- {error:.4f}"
        draws = "" if self.kind == "exact" else f", {self.samples} dequantisation samples"
        return f"{self.mean:.4f}{spread} bits/dim ({self.kind}{draws}, {len(self.values)} samples of data)"


def to_levels(x: Any, levels: int) -> Tensor:
    """Images in [-1, 1] whose values are levels, or the levels as integers, as int32. Raises ConfigError."""
    if not isinstance(x, Tensor) or x.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise ConfigError(f"expected a tensor of images, got {shown(x)}", argument="x")
    if not x.is_floating_point():
        k = x.to(torch.int64)  # int32 would wrap
        fits = (k >= 0) & (k < levels)
    else:
        # Arithmetic in x's type leaves k / levels some eps off.
        grid = max(GRID, torch.finfo(x.dtype).eps * levels)
        if grid >= 0.5:
            raise ConfigError(
                f"{str(x.dtype).removeprefix('torch.')} cannot tell {levels} levels apart; "
                "hand over the levels as integers, or images in a wider type",
                argument="x",
            )
        exact = (x.double() + 1) * ((levels - 1) / 2)
        k = exact.round()
        fits = (k >= 0) & (k < levels) & ((exact - k).abs() <= grid)
    if not bool(fits.all()):
        raise ConfigError(
            f"expected images in [-1, 1] of {levels} levels (level k is 2 k / {levels - 1} - 1), or the levels as "
            "integers; got values between or beyond them. log_prob takes any values",
            argument="x",
        )
    return k.to(torch.int32)
