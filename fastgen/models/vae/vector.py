"""A VAE of rows of numbers: perceptrons, and a normal distribution of every column.

Without hidden layers and with one sigma it is probabilistic PCA (Tipping & Bishop 1999), whose likelihood has a closed
form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...config import bounded, one_of
from ..flow.layers import Standardise
from .convolutional import Told, perceptron
from .likelihoods import SIGMAS, Gaussian
from .vae import FlatVAE, Normal


@dataclass(frozen=True, kw_only=True)
class VectorVAEConfig:
    """Options of :class:`VectorVAE`.

    features: columns of a row. hidden: widths of the encoder's layers, the decoder's the other way round. sigma,
    sigma_value: of the decoder's normal distribution, see ``models.vae.likelihoods``, in units of standardised columns.
    standardise: whether columns are shifted and scaled to mean 0 and deviation 1, by the training data.
    """

    features: int = bounded(1, 65536, default=2)
    latents: int = bounded(1, 65536, default=2)
    hidden: tuple[int, ...] = bounded(1, 65536, default=(128, 128), max_items=8)
    sigma: str = one_of(*SIGMAS, default="shared")
    sigma_value: float = bounded(1e-3, 1e3, default=0.5)
    standardise: bool = True
    num_classes: int | None = bounded(1, 1_000_000, default=None)


class Perceptron(nn.Module):
    """x [B, widths[0]] -> [B, widths[-1]]."""

    def __init__(self, widths: list[int], classes: int | None) -> None:
        super().__init__()
        self.first = Told(widths[0], widths[1], classes)
        self.rest = nn.Sequential(*perceptron(widths[1:]))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.rest(self.first(x, label))


class VectorVAE(FlatVAE):
    """A flat VAE of rows [B, D]."""

    def __init__(self, config: VectorVAEConfig) -> None:
        super().__init__()
        self.config, self.classes = config, config.num_classes
        self.data_shape, self.latent_shapes = (config.features,), ((config.latents,),)
        said = Gaussian(config.sigma, config.sigma_value, None)
        self.standardise = Standardise(config.features) if config.standardise else None
        self.encoder = Perceptron([config.features, *config.hidden, 2 * config.latents], config.num_classes)
        outputs = said.outputs * config.features
        self.decoder = Perceptron([config.latents, *reversed(config.hidden), outputs], config.num_classes)
        self.likelihood = said

    def inward(self, x: Tensor) -> Tensor:
        return x if self.standardise is None else self.standardise(x)[0]

    def outward(self, x: Tensor) -> Tensor:
        return x if self.standardise is None else self.standardise.inverse(x)[0]

    def log_slope(self) -> Tensor | float:
        if self.standardise is None:
            return 0.0
        scale = self.standardise.scale
        return scale.to(torch.promote_types(scale.dtype, torch.float32)).abs().log().sum()

    def moments(self, x: Tensor, label: Tensor | None) -> Normal:
        return Normal(*self.encoder(x, label).chunk(2, dim=1))

    def decoded(self, z: Tensor, label: Tensor | None) -> Tensor:
        return self.decoder(z, label)
