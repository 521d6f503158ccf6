"""``AutoencoderKL`` of diffusers: the autoencoder of latent diffusion models (Rombach et al. 2022, appendix G)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...config import bounded, one_of
from ...errors import ConfigError
from ..blocks import ACTIVATIONS, Attention, NormAct, ResidualBlock
from ..resample import Downsample, Upsample
from .vae import FlatVAE, Normal

EPS = 1e-6  # of every norm
LOG_VAR = (-30.0, 20.0)  # to which log-variances are clamped


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """Options of :class:`AutoencoderKL`, with diffusers' names.

    sample_size: of images that are drawn; others are taken, too. block_out_channels: of each level, the finest first.
    scaling_factor, shift_factor, latents_mean, latents_std: what diffusion models on these latents scale them by;
    encode and decode do not.
    """

    sample_size: tuple[int, ...] = bounded(1, 65536, default=(32, 32), max_items=2)
    in_channels: int = bounded(1, 1024, default=3)
    out_channels: int = bounded(1, 1024, default=3)
    block_out_channels: tuple[int, ...] = bounded(1, 8192, default=(64,), max_items=8)
    layers_per_block: int = bounded(1, 16, default=1)
    act_fn: str = one_of(*ACTIVATIONS, default="silu")
    latent_channels: int = bounded(1, 1024, default=4)
    norm_num_groups: int = bounded(1, 1024, default=32)
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: float = bounded(-1e6, 1e6, default=0.18215)
    shift_factor: float | None = bounded(-1e6, 1e6, default=None)
    latents_mean: tuple[float, ...] | None = bounded(-1e6, 1e6, default=None, max_items=1024)
    latents_std: tuple[float, ...] | None = bounded(0.0, 1e6, default=None, max_items=1024)
    force_upcast: bool = True

    def __post_init__(self) -> None:
        if not self.block_out_channels:
            raise ConfigError("expected at least one level, got none", argument="block_out_channels")
        if self.in_channels != self.out_channels:
            raise ConfigError(
                f"is {self.out_channels}, and in_channels {self.in_channels}: one autoencodes images of equal channels",
                argument="out_channels",
            )
        if odd := [c for c in self.block_out_channels if c % self.norm_num_groups]:
            raise ConfigError(
                f"{odd[0]} channels do not divide into {self.norm_num_groups} groups",
                argument="norm_num_groups",
            )
        if len(self.sample_size) != 2 or any(side % self.multiple for side in self.sample_size):
            raise ConfigError(
                f"expected two multiples of {self.multiple}, got {list(self.sample_size)}",
                argument="sample_size",
            )

    @property
    def multiple(self) -> int:
        """Pixels of an image for each of a latent, along a side."""
        return 1 << (len(self.block_out_channels) - 1)


def _residual(before: int, after: int, config: AutoencoderKLConfig) -> ResidualBlock:
    return ResidualBlock(before, after, None, config.norm_num_groups, EPS, 0.0, act=config.act_fn)


class Level(nn.Module):
    """Residual blocks of one resolution, and the way down or up to the next: [B, C, H, W] -> [B, C', H', W']."""

    def __init__(self, widths: Sequence[int], config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _residual(before, after, config) for before, after in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        return self.resampled(x)

    def resampled(self, x: Tensor) -> Tensor:
        """x at the resolution of the next level."""
        return x


class DownLevel(Level):
    """Of the encoder."""

    def __init__(self, widths: Sequence[int], config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__(widths, config)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(widths[-1], padding=0)])

    def resampled(self, x: Tensor) -> Tensor:
        for down in self.downsamplers:
            x = down(x)
        return x


class UpLevel(Level):
    """Of the decoder."""

    def __init__(self, widths: Sequence[int], config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__(widths, config)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(widths[-1])])

    def resampled(self, x: Tensor) -> Tensor:
        for up in self.upsamplers:
            x = up(x)
        return x


class Middle(nn.Module):
    """Residual, attention over all pixels, residual: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_residual(channels, channels, config) for _ in range(2))
        attends = [Attention(channels, channels, config.norm_num_groups, EPS)]
        self.attentions = nn.ModuleList(attends if config.mid_block_add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class KLEncoder(nn.Module):
    """x [B, in, H, W] -> means and log-variances [B, 2 latents, H', W']."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, depth = config.block_out_channels, len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            self.down_blocks.append(
                DownLevel([before, *[width] * config.layers_per_block], config, i == depth - 1)
            )
        self.mid_block = Middle(widths[-1], config)
        self.conv_norm_out = NormAct(config.norm_num_groups, widths[-1], EPS, "silu")
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class KLDecoder(nn.Module):
    """z [B, latents, H', W'] -> [B, out, H, W]."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, depth = [*reversed(config.block_out_channels)], len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], config)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            self.up_blocks.append(
                UpLevel([before, *[width] * (config.layers_per_block + 1)], config, i == depth - 1)
            )
        self.conv_norm_out = NormAct(config.norm_num_groups, widths[-1], EPS, "silu")
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(self.conv_norm_out(x))


class AutoencoderKL(FlatVAE):
    """A flat VAE of images [B, C, H, W] in [-1, 1], of any size that the levels divide, whose latents are maps.

    The decoder gives an image and no distribution: it was trained by other losses than a likelihood.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config, self.multiple, self.likelihood = config, config.multiple, None
        height, width = config.sample_size
        self.data_shape = (config.in_channels, height, width)
        self.latent_shapes = ((config.latent_channels, height // config.multiple, width // config.multiple),)
        self.encoder, self.decoder = KLEncoder(config), KLDecoder(config)
        latents = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if config.use_post_quant_conv else None

    def inward(self, x: Tensor) -> Tensor:
        return x

    def outward(self, x: Tensor) -> Tensor:
        return x

    def log_slope(self) -> float:
        return 0.0

    def moments(self, x: Tensor, label: Tensor | None) -> Normal:
        found = self.encoder(x)
        found = found if self.quant_conv is None else self.quant_conv(found)
        mean, log_var = found.chunk(2, dim=1)
        return Normal(mean, log_var.clamp(*LOG_VAR))

    def decoded(self, z: Tensor, label: Tensor | None) -> Tensor:
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
