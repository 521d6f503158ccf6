"""The generator of residual blocks of CycleGAN (Zhu et al. 2017, section 7.2, after Johnson et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import bounded, one_of
from .layers import NORMS, ConvNorm, Masks, check_kept, check_norm_mode, initialise

PADDINGS = {"reflect": "reflect", "replicate": "replicate", "zero": "zeros"}


@dataclass(frozen=True, kw_only=True)
class ResNetGeneratorConfig:
    """Options of :class:`ResNetGenerator`.

    channels: of the first layer (the original's ngf); each of `downs` halvings doubles them.
    blocks: residual blocks at the lowest resolution: 9 for 256x256, 6 for 128x128 in the paper.
    norm: "batch" | "instance" (whose convolutions have biases) | "none".
    padding: of the convolutions in residual blocks; the first and the last layer of the network always reflect.
    upsampling: "deconvolution", transposed convolutions; "bilinear" or "nearest", which a 3x3 convolution with
        reflection padding and bias follows.
    dropout: of rate 1/2 in the middle of every residual block.
    """

    in_channels: int = bounded(1, 64, default=3)
    out_channels: int = bounded(1, 64, default=3)
    channels: int = bounded(1, 1024, default=64)
    blocks: int = bounded(0, 64, default=9)
    downs: int = bounded(1, 4, default=2)
    norm: str = one_of(*NORMS, default="instance")
    padding: str = one_of(*PADDINGS, default="reflect")
    upsampling: str = one_of("deconvolution", "bilinear", "nearest", default="deconvolution")
    dropout: bool = False


class ResidualBlock(nn.Module):
    """x + norm(3x3(dropout(relu(norm(3x3(x)))))); x: [B, channels, H, W]."""

    def __init__(self, channels: int, norm: str, padding: str) -> None:
        super().__init__()

        def conv() -> nn.Conv2d:
            mode: Any = PADDINGS[padding]
            return nn.Conv2d(channels, channels, 3, 1, 1, bias=norm == "instance", padding_mode=mode)

        self.conv1, self.conv2 = ConvNorm(conv(), norm), ConvNorm(conv(), norm)

    def forward(self, x: Tensor, norm_mode: str, masks: Masks | None) -> Tensor:
        hidden = F.relu(self.conv1(x, norm_mode))
        if masks is not None:
            hidden = masks(hidden, self.training)
        y: Tensor = x + self.conv2(hidden, norm_mode)
        return y


class ResNetGenerator(nn.Module):
    """x [B, in_channels, H, W] in [-1, 1] -> [B, out_channels, H, W] in [-1, 1]; H and W multiples of `multiple`."""

    def __init__(self, config: ResNetGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        bias, widths = config.norm == "instance", [config.channels << i for i in range(config.downs + 1)]
        stem = nn.Conv2d(config.in_channels, config.channels, 7, 1, 3, bias=bias, padding_mode="reflect")
        self.stem = ConvNorm(stem, config.norm)
        self.down, self.blocks, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in pairwise(widths):
            conv = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=bias)
            self.down.append(ConvNorm(conv, config.norm))
        for _ in range(config.blocks):
            self.blocks.append(ResidualBlock(widths[-1], config.norm, config.padding))
        for inputs, outputs in zip(widths[:0:-1], widths[-2::-1], strict=True):
            if config.upsampling == "deconvolution":
                back: nn.Conv2d | nn.ConvTranspose2d = nn.ConvTranspose2d(
                    inputs, outputs, 3, 2, 1, output_padding=1, bias=bias
                )
            else:
                back = nn.Conv2d(inputs, outputs, 3, 1, 1, padding_mode="reflect")
            self.up.append(ConvNorm(back, config.norm))
        self.head = nn.Conv2d(config.channels, config.out_channels, 7, 1, 3, padding_mode="reflect")
        initialise(self)

    @property
    def multiple(self) -> int:
        """What both sides of an image are multiples of."""
        return 1 << self.config.downs

    @property
    def least(self) -> int:
        """The least side of an image: reflection by 3 pixels needs 4, and by 1 in the blocks 2, as statistics do."""
        return max(4, 2 * self.multiple)

    def dropout_count(self, height: int, width: int) -> int:
        """N: activations of all dropout layers for an image of height x width; 0 without dropout."""
        downs, channels = self.config.downs, self.config.channels << self.config.downs
        count = self.config.blocks if self.config.dropout else 0
        return count * channels * (height >> downs) * (width >> downs)

    def forward(self, x: Tensor, kept: Tensor | None = None, norm_mode: str = "instance") -> Tensor:
        """kept: bool [B, dropout_count(H, W)] or None, see :class:`~fastgen.models.translate.layers.Masks`;
        norm_mode: see :class:`~fastgen.models.translate.layers.BatchNorm`. Both are for evaluation mode."""
        check_norm_mode(norm_mode)
        if kept is not None:
            check_kept(kept, x.shape[0], self.dropout_count(*x.shape[2:]))
        masks = Masks(kept) if self.config.dropout else None
        x = F.relu(self.stem(x, norm_mode))
        for layer in self.down:
            x = F.relu(layer(x, norm_mode))
        for block in self.blocks:
            x = block(x, norm_mode, masks)
        for layer in self.up:
            x = F.relu(layer(self._larger(x), norm_mode))
        return torch.tanh(self.head(x))

    def _larger(self, x: Tensor) -> Tensor:
        if self.config.upsampling == "deconvolution":
            return x
        return F.interpolate(x, scale_factor=2, mode=self.config.upsampling)
