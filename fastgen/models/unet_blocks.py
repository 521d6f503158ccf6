"""The U-Net's stages: one resolution on the way down or up, in the kinds that diffusers has, and the middle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import AdaResidualBlock, Attention, NormAct, ResidualBlock
from .resample import Downsample, FirDown, FirUp, MeanDown, NearestUp, Upsample
from .unet_config import SKIP_ATTENTION_GROUPS, SKIP_CHANNELS, Level, UNetConfig, own_groups

SKIP_SCALE = math.sqrt(2.0)  # Skip blocks divide their sums by it (Song et al. 2021, appendix H)


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention where asked for, and what resamples."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_residual(config, *widths, level) for widths in level.resnets)
        self.attentions = nn.ModuleList()
        if level.attends:
            groups = SKIP_ATTENTION_GROUPS if level.skip else config.norm_num_groups
            scale = SKIP_SCALE if level.skip else 1.0
            count = 1 if level.kind == "AttnSkipUpBlock2D" else len(level.resnets)
            self.attentions.extend(_attention(config, level.out, groups, scale) for _ in range(count))


class DownBlock(Stage):
    """Residual blocks, each leaving its output as a skip, then half the resolution unless it is the last."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__(level, config)
        self.by_resnet = level.kind == "ResnetDownsampleBlock2D" or (
            level.attends and config.downsample_type == "resnet"
        )
        self.leaves_result = level.skips > len(level.resnets)
        self.downsamplers = nn.ModuleList()
        if level.resample and self.by_resnet:
            self.downsamplers.append(_resampling(config, level, MeanDown()))
        elif level.resample:
            k = level.k
            self.downsamplers.append(
                FirDown("reflect") if k else Downsample(level.out, config.downsample_padding)
            )

    def forward(self, x: Tensor, emb: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """x: [B, in, H, W], emb: [B, E] -> the new x, the skips it leaves, and `image` as it came."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions:
                x = self.attentions[i](x)
            skips.append(x)
        for down in self.downsamplers:
            x = down(x, emb) if self.by_resnet else down(x)
            if self.leaves_result:
                skips.append(x)
        return x, skips, image


class SkipDownBlock(Stage):
    """A down block that also shrinks a copy of the input image and adds it in (Karras et al. 2020, figure 7).

    Its downsampling is a residual block with a FIR filter (NCSN++, Song et al. 2021, appendix H).
    """

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__(level, config)
        self.resnet_down: nn.Module | None = None
        self.skip_conv: nn.Module | None = None
        if level.resample:
            self.resnet_down = _resampling(config, level, FirDown())
            self.shrink = FirDown()
            self.skip_conv = nn.Conv2d(SKIP_CHANNELS, level.out, 1)

    def forward(self, x: Tensor, emb: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """As `DownBlock`; image: [B, 3, H, W] -> [B, 3, H / 2, W / 2]."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions:
                x = self.attentions[i](x)
            skips.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            image = self.shrink(image)
            x = self.skip_conv(image) + self.resnet_down(x, emb)
            skips.append(x)
        return x, skips, image


class UpBlock(Stage):
    """Residual blocks, each taking one skip, then twice the resolution unless it is the last."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__(level, config)
        self.by_resnet = level.kind == "ResnetUpsampleBlock2D" or (
            level.attends and config.upsample_type == "resnet"
        )
        self.upsamplers = nn.ModuleList()
        if level.resample and self.by_resnet:
            self.upsamplers.append(_resampling(config, level, NearestUp()))
        elif level.resample:
            self.upsamplers.append(Upsample(level.out))

    def forward(
        self, x: Tensor, emb: Tensor, skips: list[Tensor], image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`skips`: the stack of skips left by the way down; this block pops what it takes."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb, skips.pop())
            if self.attentions:
                x = self.attentions[i](x)
        for up in self.upsamplers:
            x = up(x, emb) if self.by_resnet else up(x)
        return x, image


class SkipUpBlock(Stage):
    """An up block that also draws into an image, which the next one enlarges and draws on (figure 7, ibid.)."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__(level, config)
        self.enlarge = FirUp()
        self.resnet_up: nn.Module | None = None
        if level.resample:
            self.resnet_up = _resampling(config, level, FirUp())
            self.skip_norm = NormAct(own_groups(level.out), level.out, config.norm_eps)
            self.skip_conv = nn.Conv2d(level.out, SKIP_CHANNELS, 3, padding=1)

    def forward(
        self, x: Tensor, emb: Tensor, skips: list[Tensor], image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As `UpBlock`; image: [B, 3, H / 2, W / 2], or None in the first -> [B, 3, H, W]."""
        for resnet in self.resnets:
            x = resnet(x, emb, skips.pop())
        for attention in self.attentions:
            x = attention(x)
        if image is not None:
            image = self.enlarge(image)
        if self.resnet_up is not None:
            drawn = self.skip_conv(self.skip_norm(x))
            image = drawn if image is None else image + drawn
            x = self.resnet_up(x, emb)
        return x, image


class KUpBlock(Stage):
    """The up block of k-diffusion's upscalers: one skip, then residual blocks; filtered upsampling."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__(level, config)
        self.taken = level.skips
        self.upsamplers = nn.ModuleList([FirUp("reflect")] if level.resample else [])

    def forward(
        self, x: Tensor, emb: Tensor, skips: list[Tensor], image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As `UpBlock`, but only the newest of the skips it pops is used."""
        x = torch.cat([x, skips[-1]], dim=1)
        del skips[-self.taken :]
        for resnet in self.resnets:
            x = resnet(x, emb)
        for up in self.upsamplers:
            x = up(x)
        return x, image


class MidBlock(nn.Module):
    """Residual block, attention where asked for, residual block at the coarsest resolution."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        groups = (config.mid_groups, config.mid_groups)
        self.resnets = nn.ModuleList(
            _residual(config, channels, channels, groups, output_scale=scale) for _ in range(2)
        )
        self.attentions = nn.ModuleList()
        if config.add_attention:
            self.attentions.append(_attention(config, channels, config.mid_attention_groups, scale))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, emb)


def down_block(level: Level, config: UNetConfig) -> nn.Module:
    return (SkipDownBlock if level.skip else DownBlock)(level, config)


def up_block(level: Level, config: UNetConfig) -> nn.Module:
    if level.k:
        return KUpBlock(level, config)
    return (SkipUpBlock if level.skip else UpBlock)(level, config)


def _residual(
    config: UNetConfig,
    ins: int,
    out: int,
    groups: tuple[int, int],
    level: Level | None = None,
    **options: Any,
) -> nn.Module:
    """A residual block as the level's kind has it."""
    if level is not None and level.k:
        return AdaResidualBlock(
            ins, out, config.emb_channels, groups, config.norm_eps, config.dropout, config.act_fn
        )
    if level is not None and level.skip:
        options["output_scale"] = SKIP_SCALE
    return ResidualBlock(
        ins,
        out,
        config.emb_channels,
        groups,
        config.norm_eps,
        config.dropout,
        act=config.act_fn,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        **options,
    )


def _resampling(config: UNetConfig, level: Level, resample: nn.Module) -> nn.Module:
    """The residual block with which a level changes its resolution."""
    groups = own_groups(level.out) if level.skip else config.norm_num_groups or 0
    shortcut = True if level.skip else None
    return _residual(
        config, level.out, level.out, (groups, groups), level, resample=resample, shortcut=shortcut
    )


def _attention(config: UNetConfig, channels: int, groups: int | None, scale: float) -> Attention:
    return Attention(channels, config.attention_head_dim or channels, groups, config.norm_eps, scale)
