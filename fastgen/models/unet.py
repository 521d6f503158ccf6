"""The U-Net of Ho et al. 2020 and its relatives, with the options and module names of diffusers' ``UNet2DModel``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .blocks import NormAct
from .embeddings import FourierFeatures, LearnedTimes, Sinusoids, TimeEmbedding
from .unet_blocks import MidBlock, down_block, up_block
from .unet_config import UNetConfig, down_levels, up_levels

__all__ = ["UNet", "UNetConfig"]


class UNet(nn.Module):
    """Denoiser F(x, t, label).

    x: [B, in_channels, H, W]; t: [B], time in training steps, any real number (positive for fourier, rounded for
    learned); label: int64 [B] in [0, num_class_embeds), what class_embed_type says, or None for a network without
    classes. Returns [B, out_channels, H, W].
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first, emb = config.block_out_channels[0], config.emb_channels
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.time_proj = _time_features(config)
        features = 2 * first if config.time_embedding_type == "fourier" else first
        self.time_embedding = TimeEmbedding(features, emb)
        self.class_embedding: nn.Module | None = None
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, emb)
        elif config.class_embed_type == "timestep":
            self.class_embedding = TimeEmbedding(features, emb)
        elif config.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        self.down_blocks = nn.ModuleList(down_block(level, config) for level in down_levels(config))
        self.mid_block = None if config.mid_block_type is None else MidBlock(config)
        self.up_blocks = nn.ModuleList(up_block(level, config) for level in up_levels(config))
        self.conv_norm_out = NormAct(config.out_groups, first, config.norm_eps)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.denoise(x, self.embed(t, label, x.dtype), t)

    def embed(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What the blocks are told of time and label: `dtype` [B, emb_channels]."""
        emb = self.time_embedding(self.time_proj(t).to(dtype))
        if self.class_embedding is not None:
            emb = emb + self._class_embedding(label, dtype)
        return emb

    def denoise(self, x: Tensor, emb: Tensor, t: Tensor) -> Tensor:
        """`forward` from the embedding on."""
        if self.config.center_input_sample:
            x = 2 * x - 1
        image: Tensor | None = x
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x, new, image = down(x, emb, image)
            skips += new
        if self.mid_block is not None:
            x = self.mid_block(x, emb)
        image = None
        for up in self.up_blocks:
            x, image = up(x, emb, skips, image)
        x = self.conv_out(self.conv_norm_out(x))
        if image is not None:
            x = x + image
        if self.config.time_embedding_type == "fourier":  # a score: the network's scale is 1 / sigma
            x = x / t.to(x.dtype)[:, None, None, None]
        return x

    def _class_embedding(self, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        if label is None:
            raise ConfigError("this network embeds classes and needs an int64 tensor [B]", argument="label")
        assert self.class_embedding is not None
        if self.config.class_embed_type == "timestep":
            label = self.time_proj(label).to(dtype)
        return self.class_embedding(label).to(dtype)


def _time_features(config: UNetConfig) -> nn.Module:
    first = config.block_out_channels[0]
    if config.time_embedding_type == "fourier":
        return FourierFeatures(first)
    if config.time_embedding_type == "learned":
        return LearnedTimes(config.num_train_timesteps or 0, first)
    return Sinusoids(first, config.flip_sin_to_cos, config.freq_shift)
