"""The way from one latent to another along great circles: normals of many dimensions lie close to a sphere."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def joined(ends: Tensor, frames: int) -> Tensor:
    """float32 [(k - 1) * frames + 1, ...] on the CPU: from each of `ends` [k, ...] to the next by `slerp`.

    Between two of them are `frames` - 1 others.
    """
    z = ends.double().flatten(1).cpu()
    share = torch.arange(frames, dtype=torch.float64, device="cpu") / frames
    ways = [slerp(a, b, share) for a, b in itertools.pairwise(z)]
    return torch.cat([*ways, z[-1:]]).float().view(-1, *ends.shape[1:])


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
