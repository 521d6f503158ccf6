"""The U-Net of Ho et al. 2020, with diffusers' option names and module names (``UNet2DModel``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import bounded, one_of
from ..errors import ConfigError
from .blocks import (
    Attention,
    Downsample,
    NormAct,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    sinusoidal_embedding,
)

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")


@dataclass(frozen=True)
class UNetConfig:
    """Options of :class:`UNet`. `sample_size` is (height, width) in pixels; channels are counts.

    `down_block_types` and `up_block_types` have one entry a resolution, finest first and coarsest first;
    `num_class_embeds` counts the classes the network embeds, a null class for guidance included.
    """

    sample_size: tuple[int, ...] = bounded(1, 4096, max_items=2)
    in_channels: int = bounded(1, 64, default=3)
    out_channels: int = bounded(1, 128, default=3)
    block_out_channels: tuple[int, ...] = bounded(1, 4096, default=(32, 64, 96), max_items=8)
    down_block_types: tuple[str, ...] = one_of(*DOWN_BLOCKS, default=("DownBlock2D",) * 3)
    up_block_types: tuple[str, ...] = one_of(*UP_BLOCKS, default=("UpBlock2D",) * 3)
    layers_per_block: int = bounded(1, 8, default=1)
    attention_head_dim: int = bounded(1, 1024, default=8)
    norm_num_groups: int = bounded(1, 1024, default=32)
    norm_eps: float = bounded(0.0, 1.0, default=1e-5)
    dropout: float = bounded(0.0, 0.99, default=0.0)
    flip_sin_to_cos: bool = True
    freq_shift: float = bounded(0.0, 1.0, default=0.0)
    num_class_embeds: int | None = bounded(1, 1_000_000, default=None)

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if levels == 0 or len(self.sample_size) != 2:
            raise ConfigError("unet: block_out_channels needs an entry and sample_size two (height, width)")
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(
                    f"unet: {name} has {len(getattr(self, name))} entries, block_out_channels has {levels}"
                )
        stride = 2 ** (levels - 1)
        if any(size % stride for size in self.sample_size):
            raise ConfigError(
                f"unet: sample_size {self.sample_size} must be divisible by {stride} ({levels} levels)"
            )
        if self.block_out_channels[0] % 2:
            raise ConfigError("unet: block_out_channels[0] must be even (sines and cosines of the time)")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ConfigError(
                    f"unet: block_out_channels {channels} must be divisible by norm_num_groups "
                    f"{self.norm_num_groups}"
                )
        for channels in self._attention_channels():
            if channels % self.attention_head_dim:
                raise ConfigError(
                    f"unet: {channels} channels with attention must be divisible by attention_head_dim "
                    f"{self.attention_head_dim}"
                )

    def _attention_channels(self) -> list[int]:
        channels = self.block_out_channels
        down = [c for c, kind in zip(channels, self.down_block_types, strict=True) if kind.startswith("Attn")]
        up = [
            c
            for c, kind in zip(reversed(channels), self.up_block_types, strict=True)
            if kind.startswith("Attn")
        ]
        return [*down, *up, channels[-1]]  # the middle always attends


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention where asked for."""

    def __init__(self, widths: list[tuple[int, int]], emb: int, attend: bool, config: UNetConfig) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.resnets = nn.ModuleList(ResidualBlock(i, o, emb, groups, eps, config.dropout) for i, o in widths)
        self.attentions = nn.ModuleList(
            Attention(o, config.attention_head_dim, groups, eps) for _, o in widths if attend
        )


class DownBlock(Stage):
    """Residual blocks, each leaving its output as a skip, then a stride of 2 unless it is the last."""

    def __init__(
        self, in_ch: int, out_ch: int, emb: int, attend: bool, last: bool, config: UNetConfig
    ) -> None:
        widths = [(in_ch if i == 0 else out_ch, out_ch) for i in range(config.layers_per_block)]
        super().__init__(widths, emb, attend, config)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_ch)])

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions:
                x = self.attentions[i](x)
            skips.append(x)
        for down in self.downsamplers:
            x = down(x)
            skips.append(x)
        return x, skips


class UpBlock(Stage):
    """Residual blocks, each taking one skip, then a doubling of the resolution unless it is the last."""

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        skips: list[int],
        emb: int,
        attend: bool,
        last: bool,
        config: UNetConfig,
    ) -> None:
        widths = [((in_ch if i == 0 else out_ch) + skip, out_ch) for i, skip in enumerate(skips)]
        super().__init__(widths, emb, attend, config)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_ch)])

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """`skips`: the stack of skips left by the way down; this block pops what it takes."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), emb)
            if self.attentions:
                x = self.attentions[i](x)
        for up in self.upsamplers:
            x = up(x)
        return x


class MidBlock(Stage):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int, emb: int, config: UNetConfig) -> None:
        super().__init__([(channels, channels)] * 2, emb, False, config)
        self.attentions.append(
            Attention(channels, config.attention_head_dim, config.norm_num_groups, config.norm_eps)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, emb)), emb)


class UNet(nn.Module):
    """Denoiser F(x, t, label).

    x: [B, in_channels, H, W]; t: [B], time in training steps (any real number); label: int64 [B] in
    [0, num_class_embeds), or None for a network without classes. Returns [B, out_channels, H, W].
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        emb = 4 * channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], emb)
        self.class_embedding = (
            nn.Embedding(config.num_class_embeds, emb) if config.num_class_embeds is not None else None
        )

        self.down_blocks = nn.ModuleList()
        skips, width = [channels[0]], channels[0]
        for i, (out, kind) in enumerate(zip(channels, config.down_block_types, strict=True)):
            last = i == len(channels) - 1
            self.down_blocks.append(DownBlock(width, out, emb, kind.startswith("Attn"), last, config))
            skips += [out] * (config.layers_per_block + (not last))
            width = out

        self.mid_block = MidBlock(width, emb, config)

        self.up_blocks = nn.ModuleList()
        for i, (out, kind) in enumerate(zip(reversed(channels), config.up_block_types, strict=True)):
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            last = i == len(channels) - 1
            self.up_blocks.append(UpBlock(width, out, taken, emb, kind.startswith("Attn"), last, config))
            width = out

        self.conv_norm_out = NormAct(config.norm_num_groups, width, config.norm_eps)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        sinusoids = sinusoidal_embedding(
            t, self.config.block_out_channels[0], self.config.flip_sin_to_cos, self.config.freq_shift
        )
        emb = self.time_embedding(sinusoids.to(x.dtype))
        if self.class_embedding is not None:
            if label is None:
                raise ValueError("label: this network embeds classes and needs an int64 tensor [B]")
            emb = emb + self.class_embedding(label)

        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x, new = down(x, emb)
            skips += new
        x = self.mid_block(x, emb)
        for up in self.up_blocks:
            x = up(x, emb, skips)
        return self.conv_out(self.conv_norm_out(x))
