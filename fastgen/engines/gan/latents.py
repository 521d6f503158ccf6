"""Latents of a generator: truncated normals."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated(noise: Tensor, factor: Tensor, bound: Tensor) -> Tensor:
    """factor * z, z normal within [-bound, bound], by inverse CDF from standard normal `noise` [B, D]: float64 there.

    factor, bound: float64 [B]; an infinite bound leaves the noise as it is. z grows with the noise of its own place and
    depends on nothing else, so that a sample does not depend on its batch and moves steadily with the truncation.
    """
    wide, bound = noise.double(), bound[:, None]
    outside = torch.special.ndtr(-bound)  # the mass beyond either end
    # By the tail on the noise's own side, whose probability float64 holds to its last digit.
    tail = outside + torch.special.ndtr(-wide.abs()) * (1 - 2 * outside)
    inside = torch.copysign(-torch.special.ndtri(tail), wide).clamp(-bound, bound)
    return factor[:, None] * torch.where(bound.isinf(), wide, inside)
