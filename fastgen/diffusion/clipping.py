"""What a solver does with its estimate of x_0 before it uses it: nothing, a clip, or the dynamic threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import bounded
from .given import Begin
from .table import NO_THRESHOLD


@dataclass(frozen=True)
class ClipOptions(Begin):
    """Options that solvers share; names are diffusers'. Every solver's defaults are those that draw best.

    as_diffusers: options that are not given take diffusers' defaults, `diffusers`, where those are others
    clip_sample, clip_sample_range: clip the estimate of x_0 to +- the range
    thresholding, dynamic_thresholding_ratio, sample_max_value: instead, clip each sample's estimate to +- s and divide
        it by s, s = clamp(quantile(|x_0|, ratio), 1, sample_max_value) (Saharia et al. 2022, arXiv:2205.11487,
        section 2.3). Made for pixels and large guidance weights, not for latents. A sample_max_value below 1 is s
        itself, as in diffusers
    begin_index: see `Begin`
    """

    diffusers: ClassVar[Mapping[str, Any]] = {}

    as_diffusers: bool = False
    clip_sample: bool = False
    clip_sample_range: float = bounded(1e-6, 1e6, default=1.0)
    thresholding: bool = False
    dynamic_thresholding_ratio: float = bounded(1e-6, 1.0, default=0.995)
    sample_max_value: float = bounded(1e-6, 1e6, default=1.0)

    @property
    def clip(self) -> float:
        """Bound of |x_0|, inf = none; diffusers, too, lets the threshold take the clip's place."""
        return self.clip_sample_range if self.clip_sample and not self.thresholding else math.inf

    @property
    def threshold(self) -> tuple[float, float]:
        """(ratio, largest) for a table's rows."""
        return (self.dynamic_thresholding_ratio, self.sample_max_value) if self.thresholding else NO_THRESHOLD

    @property
    def clipped(self) -> bool:
        """Whether x_0 is changed: what else follows from the network's output must then be taken from x_0."""
        return self.clip_sample or self.thresholding
