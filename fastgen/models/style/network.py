"""What networks for style transfer have in common: a picture's features, a style's code, features under that style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Signals:
    """The style that features [B, C, h, w] are to get.

    codes: [B, K, D], of K styles. mix: [B, K, h, w], the share of each style at each pixel, with sum 1; None where
    there is one style.
    """

    codes: Tensor
    mix: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """A part of the code, [B, stop - start, 1, 1]; where styles are mixed by pixel [B, stop - start, h, w]."""
        part = self.codes[:, :, start:stop]
        if self.mix is None:
            return part[:, 0, :, None, None]
        return torch.einsum("bkd,bkhw->bdhw", part, self.mix.to(part.dtype))


class StyleNetwork(nn.Module):
    """A network whose work divides into parts, so that large pictures can pass through it in tiles.

        decode(modulate(features(content), Signals(code(style_features(style))[:, None])))

    All but `code` and `modulate` look only at a pixel's neighbourhood; these two need statistics of the whole picture.
    Pictures are RGB in [0, 1], of any size from `minimum` on. Features have a pixel for `stride` x `stride` of the
    picture, the last ones for what is left; what is decoded is as much larger than the picture, to be cut off at the
    right and at the bottom.

    reach: how many pixels of the picture `features`, `style_features` and `decode` look beyond a pixel, at most.
    code_size: D of a style's code [B, D]. one_encoder: whether `features` and `style_features` are the same.
    """

    config: Any
    stride: int
    minimum: int
    reach: int
    code_size: int
    one_encoder: bool

    def features(self, content: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, h, w]."""
        raise NotImplementedError

    def style_features(self, style: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C', h, w]."""
        raise NotImplementedError

    def code(self, style_features: Tensor) -> Tensor:
        """The style as a vector, [B, D].

        Codes may be averaged: those of several styles, and those of a style and of the content, for a weaker style. The
        content under its own code is the autoencoded content.
        """
        raise NotImplementedError

    def modulate(self, features: Tensor, signals: Signals, alpha: float = 1.0) -> Tensor:
        """Features under the style. alpha: in [0, 1], how much of each normalisation is taken on."""
        raise NotImplementedError

    def decode(self, features: Tensor) -> Tensor:
        """[B, C, h, w] to [B, 3, h * stride, w * stride]; values may be outside of [0, 1]."""
        raise NotImplementedError

    def encode_style(self, style: Tensor) -> Tensor:
        """The code [B, D] of pictures [B, 3, H, W]."""
        return self.code(self.style_features(style))

    def forward(self, content: Tensor, style: Tensor, alpha: float = 1.0) -> Tensor:
        """content [B, 3, H, W] in the style of `style` [B, 3, H', W'], by its authors' formula: [B, 3, H, W]."""
        signals = Signals(self.encode_style(style)[:, None])
        made = self.decode(self.modulate(self.features(content), signals, alpha))
        return made[:, :, : content.shape[2], : content.shape[3]]


class AdaIN(nn.Module):
    """Adaptive instance normalisation: every plane gets a mean and a deviation (Huang & Belongie 2017, eq. 8).

    Variances are unbiased, as in naoto0804/pytorch-AdaIN and MicroAST.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def statistics(self, x: Tensor) -> Tensor:
        """Means, then deviations of the planes of x [B, C, h, w]: [B, 2C]."""
        var, mean = torch.var_mean(x, (2, 3), correction=1)
        return torch.cat([mean, (var + self.eps).sqrt()], dim=1)

    def forward(self, x: Tensor, mean: Tensor, std: Tensor, alpha: float = 1.0) -> Tensor:
        """x [B, C, h, w] with `mean` and `std`, each [B, C, 1, 1] or [B, C, h, w]. alpha: 0 leaves x (eq. 14)."""
        var, own = torch.var_mean(x, (2, 3), correction=1, keepdim=True)
        y = (x - own) / (var + self.eps).sqrt() * std + mean
        return y if alpha == 1.0 else alpha * y + (1 - alpha) * x


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution of a picture that is mirrored at its borders."""
    padding: dict[str, Any] = {"padding": size // 2, "padding_mode": "reflect"} if size > 1 else {}
    return nn.Conv2d(inputs, outputs, size, stride, groups=groups, **padding)
