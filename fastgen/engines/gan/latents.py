"""Latents of a generator: truncated normals, and the way from one to another."""

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


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """[F, D]: from a to b [D] along the great circle through both (Shoemake 1985), lengths in proportion; share: [F].

    Where they point the same way, or in opposite ones, where there is no such circle, along the straight line.
    """
    share = share[:, None]
    long_a, long_b = a.norm(), b.norm()
    cosine = (a / long_a).dot(b / long_b).clamp(-1, 1)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    straight = torch.lerp(a[None], b[None], share)
    if bool(sine < 1e-6) or not bool((long_a > 0) & (long_b > 0)):
        return straight
    unit = (torch.sin((1 - share) * angle) * (a / long_a) + torch.sin(share * angle) * (b / long_b)) / sine
    return unit * torch.lerp(long_a, long_b, share)
