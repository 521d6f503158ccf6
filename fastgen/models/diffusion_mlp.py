"""A perceptron that denoises rows of numbers: residual blocks, each told the time and the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import bounded, one_of
from ..errors import ConfigError
from .embeddings import FourierFeatures, Sinusoids, TimeEmbedding

TIME_CHANNELS = 64
FREQUENCY = (
    1.0  # standard deviation of the frequencies of log(sigma): a curve as smooth as few rows can teach
)


@dataclass(frozen=True, kw_only=True)
class DiffusionMLPConfig:
    """Options of :class:`DiffusionMLP`.

    features: columns of a row. hidden: width of the residual blocks; blocks: how many. frequencies: how many sines and
    cosines of each column, of x, 2x, 4x, ..., the network sees beside the column itself: without them a perceptron is
    slow to learn the steep score between narrow modes (Tancik et al. 2020). learned_variance: twice as many
    outputs, the second half of which says the variance. time_embedding_type: positional, sinusoids of time_scale * t;
    or fourier, for a network that is told sigma: random frequencies of log(t), and the output divided by t. time_scale:
    brings times to about 0 to 1,000, which the sinusoids are made for. num_class_embeds: classes that the network
    embeds, a null class for guidance included.
    """

    features: int = bounded(1, 4096, default=2)
    hidden: int = bounded(1, 65_536, default=128)
    blocks: int = bounded(1, 64, default=3)
    frequencies: int = bounded(0, 16, default=4)
    learned_variance: bool = False
    time_embedding_type: str = one_of("positional", "fourier", default="positional")
    time_scale: float = bounded(1e-6, 1e6, default=1.0)
    num_class_embeds: int | None = bounded(1, 1_000_000, default=None)

    # What an engine asks of any denoiser's configuration.
    @property
    def in_channels(self) -> int:
        """Columns of a row."""
        return self.features

    @property
    def out_channels(self) -> int:
        """Outputs."""
        return self.features * (2 if self.learned_variance else 1)

    @property
    def sample_size(self) -> tuple[int, ...]:
        """A row has no height and width."""
        return ()

    @property
    def class_embed_type(self) -> None:
        """Classes are numbers."""
        return None


class Block(nn.Module):
    """x + a perceptron of x and the embedding: [B, hidden], [B, hidden] -> [B, hidden]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.told = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        inner: Tensor = self.linear_1(F.silu(x)) + self.told(emb)
        return x + self.linear_2(F.silu(inner))


class DiffusionMLP(nn.Module):
    """Denoiser F(x, t, label) of rows.

    x: [B, D], or [B, D, 1, 1] as the sampling loop keeps its states; t: [B], real, positive for fourier; label: int64
    [B] in [0, num_class_embeds), or None for a network without classes. Returns [B, D] or [B, D, 1, 1], 2 D where the
    variance is learned.
    """

    def __init__(self, config: DiffusionMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.time_proj: nn.Module
        if config.time_embedding_type == "fourier":
            self.time_proj = FourierFeatures(TIME_CHANNELS // 2, FREQUENCY)
        else:
            self.time_proj = Sinusoids(TIME_CHANNELS, True, 0.0)
        self.time_embedding = TimeEmbedding(TIME_CHANNELS, config.hidden)
        self.class_embedding = (
            None if config.num_class_embeds is None else nn.Embedding(config.num_class_embeds, config.hidden)
        )
        self.linear_in = nn.Linear(config.features * (1 + 2 * config.frequencies), config.hidden)
        self.blocks = nn.ModuleList(Block(config.hidden) for _ in range(config.blocks))
        self.linear_out = nn.Linear(config.hidden, config.out_channels)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.linear_in(self._waves(x.flatten(1)))
        emb = self._embedding(t, label, h.dtype)
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.linear_out(F.silu(h))
        if self.config.time_embedding_type == "fourier":  # a score: the network's scale is 1 / sigma
            out = out / t.to(out.dtype)[:, None]
        return out.reshape(len(x), -1, *x.shape[2:])

    def _waves(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, (1 + 2 frequencies) D]: x, then for each frequency its sines and its cosines."""
        angles = [2.0**k * x.float() for k in range(self.config.frequencies)]
        return torch.cat(
            [x, *(wave.to(x.dtype) for angle in angles for wave in (angle.sin(), angle.cos()))], 1
        )

    def _embedding(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        if self.config.time_embedding_type == "positional":
            t = t.float() * self.config.time_scale
        emb: Tensor = self.time_embedding(self.time_proj(t).to(self.linear_in.weight.dtype))
        if self.class_embedding is not None:
            if label is None:
                raise ConfigError(
                    "this network embeds classes and needs an int64 tensor [B]", argument="label"
                )
            emb = emb + self.class_embedding(label)
        return F.silu(emb).to(dtype)
