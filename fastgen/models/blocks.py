"""The small set of blocks that reference U-Nets are written from, and that the engine swaps for fast twins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


class NormAct(nn.GroupNorm):
    """GroupNorm (Wu & He 2018), then x (1 + scale) + shift where they are given, then an activation or None.

    x: [B, C, H, W]; scale, shift: [B, C, 1, 1]; act: a name in ``ACTIVATIONS``.
    """

    def __init__(
        self, groups: int, channels: int, eps: float = 1e-5, act: str | None = "silu", affine: bool = True
    ) -> None:
        super().__init__(groups, channels, eps, affine)
        self.act = act

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        if scale is not None and shift is not None:
            x = x * (1 + scale) + shift
        return x if self.act is None else ACTIVATIONS[self.act](x)


class AdaNormAct(NormAct):
    """`NormAct` whose scale and shift are a linear function of the embedding: x [B, C, H, W], emb [B, E]."""

    def __init__(self, emb_channels: int, groups: int, channels: int, eps: float, act: str) -> None:
        super().__init__(groups, channels, eps, act, affine=False)
        self.linear = nn.Linear(emb_channels, 2 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        scale, shift = self.linear(emb)[:, :, None, None].chunk(2, dim=1)
        return super().forward(x, scale, shift)


class ResidualBlock(nn.Module):
    """norm-act, 3x3, + embedding, norm-act, dropout, 3x3, + shortcut (Ho et al. 2020, appendix B).

    x: [B, in, H, W], emb: [B, emb_channels] -> [B, out, H', W']; emb_channels None: there is no embedding.
    skip: [B, in2, H, W] or None, stands behind x's channels; `in` counts both then.

    groups: of both norms, or one for each. scale_shift: the embedding scales and shifts the second norm instead of
    being added before it (Nichol & Dhariwal 2021, section 3). resample: changes the resolution of both branches after
    the first norm-act (BigGAN's residual block). output_scale: divides the sum (Song et al. 2021: sqrt(2)).
    shortcut: whether a 1x1 convolution lies on the short way; None = where the channels change.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int | None,
        groups: int | tuple[int, int],
        eps: float,
        dropout: float,
        *,
        act: str = "silu",
        scale_shift: bool = False,
        output_scale: float = 1.0,
        resample: nn.Module | None = None,
        shortcut: bool | None = None,
    ) -> None:
        super().__init__()
        first, second = groups if isinstance(groups, tuple) else (groups, groups)
        self.act, self.scale_shift, self.output_scale, self.resample = (
            act,
            scale_shift,
            output_scale,
            resample,
        )
        self.norm1 = NormAct(first, in_channels, eps, act)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = (
            None
            if emb_channels is None
            else nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        )
        self.norm2 = NormAct(second, out_channels, eps, act)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changes = in_channels != out_channels if shortcut is None else shortcut
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if changes else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        hidden = self.norm1(x)
        if self.resample is not None:
            x, hidden = self.resample(x), self.resample(hidden)
        hidden = self.conv1(hidden)
        if self.time_emb_proj is None:
            hidden = self.norm2(hidden)
        else:
            assert emb is not None
            emb = self.time_emb_proj(ACTIVATIONS[self.act](emb))[:, :, None, None]
            hidden = (
                self.norm2(hidden, *emb.chunk(2, dim=1)) if self.scale_shift else self.norm2(hidden + emb)
            )
        hidden = self.conv2(self.dropout(hidden))
        return _rescaled(hidden + self.conv_shortcut(x), self.output_scale)


class AdaResidualBlock(nn.Module):
    """Residual block both of whose norms are scaled and shifted by the embedding, as in k-diffusion.

    x: [B, in, H, W], emb: [B, emb_channels] -> [B, out, H, W]; groups: of the first and the second norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        groups: tuple[int, int],
        eps: float,
        dropout: float,
        act: str,
    ) -> None:
        super().__init__()
        self.norm1 = AdaNormAct(emb_channels, groups[0], in_channels, eps, act)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaNormAct(emb_channels, groups[1], out_channels, eps, act)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.conv1(self.norm1(x, emb))
        hidden = self.conv2(self.dropout(self.norm2(hidden, emb)))
        return hidden + self.conv_shortcut(x)


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual. x: [B, C, H, W], C at least `head_dim`.

    There are C // head_dim heads. groups: of the norm before it, None = no norm. output_scale: divides the sum.
    """

    def __init__(
        self, channels: int, head_dim: int, groups: int | None, eps: float, output_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.head_dim, self.output_scale = head_dim, output_scale
        self.group_norm = None if groups is None else NormAct(groups, channels, eps, act=None)
        inner = channels // head_dim * head_dim
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        normed = x if self.group_norm is None else self.group_norm(x)
        tokens = normed.flatten(2).transpose(1, 2)  # [B, H W, C]
        heads = (*tokens.shape[:2], -1, self.head_dim)
        q, k, v = (proj(tokens).view(heads).transpose(1, 2) for proj in (self.to_q, self.to_k, self.to_v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return _rescaled(x + self.to_out(attended).transpose(1, 2).reshape(x.shape), self.output_scale)


def _rescaled(x: Tensor, scale: float) -> Tensor:
    """x / scale; nothing is computed for the usual scale of 1."""
    return x if scale == 1 else x / scale
