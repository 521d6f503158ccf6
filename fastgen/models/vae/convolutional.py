"""The convolutional VAE of Burgess et al. 2018 (section A.2), as disentangling-vae has it, for images of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...config import bounded, one_of
from ...errors import ConfigError
from .likelihoods import KINDS, SIGMAS, likelihood
from .vae import FlatVAE, Normal

CONTRAST = (
    0.5  # how far classes' scales are apart before training: so far that networks begin by telling them apart
)


@dataclass(frozen=True, kw_only=True)
class ConvolutionalVAEConfig:
    """Options of :class:`ConvolutionalVAE`.

    sample_size: height and width, multiples of 2^len(channels). latents: how many. channels: of the 4x4 convolutions of
    stride 2, the first of which sees the image; the decoder has them the other way round. hidden: widths of the linear
    layers between, the encoder's first. likelihood, sigma, sigma_value, levels: see ``models.vae.likelihoods``;
    sigma_value is in units of images in [0, 1]. num_classes: of labels that encoder and decoder are told.

    disentangling-vae has latents 10, channels (32, 32, 32), for 64x64 (32, 32, 32, 32), hidden (256, 256), bernoulli.
    """

    sample_size: tuple[int, ...] = bounded(1, 4096, default=(32, 32), max_items=2)
    in_channels: int = bounded(1, 64, default=1)
    latents: int = bounded(1, 65536, default=10)
    channels: tuple[int, ...] = bounded(1, 4096, default=(32, 32, 32), max_items=8)
    hidden: tuple[int, ...] = bounded(1, 65536, default=(256, 256), max_items=8)
    likelihood: str = one_of(*KINDS, default="bernoulli")
    sigma: str = one_of(*SIGMAS, default="learned")
    sigma_value: float = bounded(1e-3, 1e3, default=0.1)
    levels: int = bounded(2, 65536, default=256)
    num_classes: int | None = bounded(1, 1_000_000, default=None)

    def __post_init__(self) -> None:
        check_size(self.sample_size, len(self.channels))

    @property
    def start(self) -> tuple[int, int, int]:
        """Of the maps between convolutions and linear layers."""
        factor = 1 << len(self.channels)
        height, width = self.sample_size
        return self.channels[-1], height // factor, width // factor


def check_size(sample_size: tuple[int, ...], halvings: int) -> None:
    """Raise ConfigError where images of `sample_size` cannot be halved so often."""
    if not halvings:
        raise ConfigError("expected at least one, got none", argument="channels")
    if len(sample_size) != 2 or any(side % (1 << halvings) for side in sample_size):
        raise ConfigError(
            f"expected two multiples of {1 << halvings}, for {halvings} convolutions that halve the image, got "
            f"{list(sample_size)}",
            argument="sample_size",
        )


class Told(nn.Module):
    """A linear layer, scaled and shifted by learned vectors of each class (Perez et al. 2018).

    x [B, I], label int64 [B] or None -> [B, O].
    A shift alone leaves most of what a class looks like to the latents, and their prior knows nothing of classes.
    """

    def __init__(self, inputs: int, outputs: int, classes: int | None) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.embed = None if classes is None else nn.Embedding(classes, 2 * outputs)
        if self.embed is not None:
            scale, shift = self.embed.weight.detach().chunk(2, dim=1)
            nn.init.normal_(scale, 1.0, CONTRAST)
            nn.init.normal_(shift, 0.0, 2 * CONTRAST)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.linear(x)
        if self.embed is None:
            return x
        scale, shift = self.embed(label).chunk(2, dim=1)
        return torch.addcmul(shift, x, scale)


class ConvEncoder(nn.Module):
    """x [B, C, H, W] -> means and log-variances, [B, 2 latents]."""

    def __init__(self, config: ConvolutionalVAEConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = config.in_channels
        for width in config.channels:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU()]
            channels = width
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        widths = [*config.hidden, 2 * config.latents]
        self.first = Told(math.prod(config.start), widths[0], config.num_classes)
        self.rest = nn.Sequential(*perceptron(widths))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.rest(self.first(self.convolutions(x), label))


class ConvDecoder(nn.Module):
    """z [B, latents] -> [B, outputs C, H, W]; outputs: for each element of the image."""

    def __init__(self, config: ConvolutionalVAEConfig, outputs: int) -> None:
        super().__init__()
        widths = [*reversed(config.hidden), math.prod(config.start)]
        self.first = Told(config.latents, widths[0], config.num_classes)
        layers: list[nn.Module] = [*perceptron(widths), nn.ReLU(), nn.Unflatten(1, config.start)]
        channels = [*reversed(config.channels), outputs * config.in_channels]
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            layers += [*([nn.ReLU()] if i else []), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.rest = nn.Sequential(*layers)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.rest(self.first(z, label))


class ConvolutionalVAE(FlatVAE):
    """A flat VAE of images [B, C, H, W] in [0, 1]."""

    def __init__(self, config: ConvolutionalVAEConfig) -> None:
        super().__init__()
        self.config, self.classes = config, config.num_classes
        height, width = config.sample_size
        self.data_shape = (config.in_channels, height, width)
        self.latent_shapes = ((config.latents,),)
        said = likelihood(config.likelihood, config.sigma, config.sigma_value, config.levels)
        self.encoder = ConvEncoder(config)
        self.decoder = ConvDecoder(config, said.outputs)
        self.likelihood = said

    def moments(self, x: Tensor, label: Tensor | None) -> Normal:
        return Normal(*self.encoder(x, label).chunk(2, dim=1))

    def decoded(self, z: Tensor, label: Tensor | None) -> Tensor:
        return self.decoder(z, label)


def perceptron(widths: Iterable[int]) -> list[nn.Module]:
    """ReLUs and linear layers from the first width, whose layer is there already, to the last."""
    widths = list(widths)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    return layers
