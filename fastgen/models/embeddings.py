"""What a denoiser makes of the time: sinusoids, random Fourier features or a learnt table, then a perceptron."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOURIER_SCALE = 16.0  # standard deviation of the random frequencies (Song et al. 2021, appendix C)


def sinusoidal_embedding(t: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoids of the time (Vaswani et al. 2017, 3.5): t [B] -> float32 [B, channels].

    With ``flip_sin_to_cos`` the cosines come first; frequencies fall from 1 to 1 / 10,000 over
    ``channels / 2 - freq_shift`` steps. An odd last channel is 0.
    """
    half = channels // 2
    # In diffusers' order of operations: t is multiplied by up to 1000, and so would be another rounding.
    exponent = -math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(exponent / (half - freq_shift))
    sin, cos = angle.sin(), angle.cos()
    both = torch.cat([cos, sin] if flip_sin_to_cos else [sin, cos], dim=1)
    return F.pad(both, (0, channels % 2))


class Sinusoids(nn.Module):
    """`sinusoidal_embedding` as a module: t [B] -> float32 [B, channels]."""

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.channels, self.flip_sin_to_cos, self.freq_shift = channels, flip_sin_to_cos, freq_shift

    def forward(self, t: Tensor) -> Tensor:
        return sinusoidal_embedding(t, self.channels, self.flip_sin_to_cos, self.freq_shift)


class FourierFeatures(nn.Module):
    """sin and cos of 2 pi w log(t), w fixed and random (Tancik et al. 2020): t [B], positive -> [B, 2 * channels]."""

    def __init__(self, channels: int, scale: float = FOURIER_SCALE) -> None:
        """scale: standard deviation of w."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).normal_(std=scale), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = torch.log(t)[:, None] * self.weight[None] * 2 * math.pi
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class LearnedTimes(nn.Embedding):
    """A learnt vector for each of T timesteps: t [B] in 0 .. T - 1, rounded to whole ones -> [B, channels]."""

    def forward(self, t: Tensor) -> Tensor:
        return super().forward(t.round().long() if t.is_floating_point() else t)


class TimeEmbedding(nn.Module):
    """Two-layer perceptron on the features of the time: [B, in] -> [B, out]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
