"""The small set of blocks that reference U-Nets are written from, and that the engine swaps for fast twins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormAct(nn.GroupNorm):
    """GroupNorm (Wu & He 2018) followed by SiLU, or by nothing with ``act=False``. x: [B, C, H, W]."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, act: bool = True) -> None:
        super().__init__(groups, channels, eps)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.silu(x) if self.act else x


class ResidualBlock(nn.Module):
    """norm-act, 3x3, + embedding, norm-act, dropout, 3x3, + shortcut (Ho et al. 2020, appendix B).

    x: [B, in, H, W], emb: [B, emb_channels] -> [B, out, H, W].
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, groups: int, eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = NormAct(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_channels, out_channels)
        self.norm2 = NormAct(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.conv1(self.norm1(x))
        hidden = hidden + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        hidden = self.conv2(self.dropout(self.norm2(hidden)))
        return hidden + self.conv_shortcut(x)


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual. x: [B, C, H, W]; `head_dim` divides C."""

    def __init__(self, channels: int, head_dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.group_norm = NormAct(groups, channels, eps, act=False)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        heads = (batch, height * width, channels // self.head_dim, self.head_dim)
        q, k, v = (proj(tokens).view(heads).transpose(1, 2) for proj in (self.to_q, self.to_k, self.to_v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape)
        return x + self.to_out(attended).transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Strided 3x3 convolution: [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution: [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def sinusoidal_embedding(t: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoids of the time (Vaswani et al. 2017, 3.5): t [B] -> float32 [B, channels], channels even.

    With ``flip_sin_to_cos`` the cosines come first; frequencies fall from 1 to 1 / 10,000 over
    ``channels / 2 - freq_shift`` steps.
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angle = t.float()[:, None] * torch.exp(-math.log(10_000.0) * exponent)
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([cos, sin] if flip_sin_to_cos else [sin, cos], dim=1)


class TimeEmbedding(nn.Module):
    """Two-layer perceptron on the sinusoids: [B, in] -> [B, out]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
