"""Numbers that are estimated for each sample of data, and what kind of numbers they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimates:
    """values: float64 [n], on the CPU. kind: what they are. samples: how many draws each is made of."""

    values: Tensor
    kind: str
    samples: int

    @property
    def mean(self) -> float:
        """Over the samples of data."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for a single sample."""
        count = len(self.values)
        return float(self.values.std() / math.sqrt(count)) if count > 1 else math.nan
