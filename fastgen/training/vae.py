"""Training variational autoencoders: the negative ELBO, and losses that weigh its terms otherwise.

    elbo    -log p(x | z) + KL(q(z | x) | p(z))                                      Kingma & Welling 2014
    beta    -log p(x | z) + beta KL                                                  Higgins et al. 2017
    tcvae   -log p(x | z) + MI + beta TC + the sum of KL(q(z_j) | p(z_j))            Chen et al. 2018, eq. 4

In tcvae the KL's mean over the data is divided into mutual information, total correlation and dimension-wise KL, with
q(z) estimated by minibatch-weighted sampling (section 4.1 and appendix C.1). Free bits (Kingma et al. 2016, appendix
C.8) leave alone what a latent's KL, averaged over the batch, has below so many nats; KL annealing (Bowman et al. 2016)
raises the weight of the KL from 0 linearly. z is one draw of the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import bounded, one_of
from ..errors import ConfigError
from ..models.flow.dequantise import Dequantiser
from ..models.vae.vae import LOG_2_PI, VAE, Inferred, Normal
from ..models.vae.vector import VectorVAE
from .batch import Dataset
from .objective import OneNetwork, Step

LOSSES = ("elbo", "beta", "tcvae")


@dataclass(frozen=True, kw_only=True)
class VariationalConfig:
    """loss: see this module. beta: of beta and tcvae. free_bits: nats of each latent, of each channel of latents that
    are maps. anneal: steps over which the KL's weight grows from 0 to 1. shift: pixels, up to which images are moved
    up, down and to the sides at random, anew in every step; what moves in repeats the border.
    """

    loss: str = one_of(*LOSSES, default="elbo")
    beta: float = bounded(0.0, 1e6, default=1.0)
    free_bits: float = bounded(0.0, 1e3, default=0.0)
    anneal: int = bounded(0, 100_000_000, default=0)
    shift: int = bounded(0, 4096, default=0)

    def __post_init__(self) -> None:
        if self.loss == "elbo" and self.beta != 1:
            raise ConfigError(
                f"is {self.beta:g}, and elbo has none: take the loss beta, or tcvae", argument="beta"
            )
        if self.loss == "tcvae" and self.free_bits:
            raise ConfigError(
                "are of the KL of single latents, which tcvae divides otherwise", argument="free_bits"
            )


class TotalCorrelation:
    """The parts of the KL by minibatch-weighted sampling. size: N, samples of the data set."""

    def __init__(self, latents: Sequence[Tensor], posteriors: Sequence[Normal], size: int) -> None:
        z = torch.cat([value.flatten(1) for value in latents], dim=1)  # [M, D]
        mean, log_var = (
            torch.cat([getattr(q, name).flatten(1) for q in posteriors], dim=1)
            for name in ("mean", "log_var")
        )
        own = _log_normal(z, mean, log_var)
        every = _log_normal(z[:, None], mean[None], log_var[None])  # [i, j, D]: log q(z_i | x_j)
        weight = math.log(len(z) * size)
        joint = every.sum(2).logsumexp(1) - weight  # log q(z_i), up to the estimate
        single = every.logsumexp(1) - weight  # log q(z_i's elements)
        prior = -0.5 * (z.square() + LOG_2_PI)
        self.mutual_information = (own.sum(1) - joint).mean()
        self.total_correlation = (joint - single.sum(1)).mean()
        self.dimension_wise = (single - prior).sum(1).mean()


def _log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + LOG_2_PI)


@dataclass(frozen=True)
class Variational(OneNetwork):
    """The objective of a :class:`VAE`. size: samples of the data set. unit: what the loss counts in, of `network`:
    bits/dim of images, nats of rows. Images whose density is modelled are dequantised by uniform noise, anew in every
    step.
    """

    config: VariationalConfig
    size: int
    unit: str

    def inputs(self, batch: Tensor) -> Tensor:
        """As they are."""
        return batch

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """Rows are standardised by all of them."""
        (module,) = networks.values()
        if isinstance(module, VectorVAE) and module.standardise is not None:
            everything = dataset.batch(range(len(dataset))).x
            module.standardise.initialize(everything.to(step.x.device))

    def loss(self, module: nn.Module, step: Step) -> Tensor:
        """The loss of the batch, a mean over its samples."""
        assert isinstance(module, VAE)
        assert module.likelihood is not None
        said = module.likelihood

        images = len(module.data_shape) == 3
        given = step.x
        if self.config.shift:
            given = moved(given, self._places(step))
        noise = [step.normal(*shape) for shape in module.latent_shapes]
        dequantised = images and not said.discrete
        if dequantised:
            assert said.levels is not None
            x, _ = Dequantiser(said.levels)(given, step.normal(*given.shape[1:]))
        else:
            x = given.float() / 255 if images else module.inward(given)
        label = None if step.label is None or module.classes is None else step.label.to(step.x.device)
        with step.autocast():
            found = module.infer(x, noise, label)
        with torch.autocast(step.x.device.type, enabled=False):
            nats = -said.log_prob(found.output.float(), x).mean() + self._weight(
                step.number
            ) * self._regulariser(found)
        if not images:
            slope = module.log_slope()
            return nats - slope
        dimensions = math.prod(module.data_shape)
        return nats / (dimensions * math.log(2)) + (math.log2(said.levels or 1) if dequantised else 0.0)

    @property
    def whole_batch(self) -> str:
        """See ``Objective``."""
        if self.config.loss == "tcvae":
            return "tcvae compares every sample of a batch with every other"
        return "free bits are of the mean over a batch" if self.config.free_bits else ""

    def _places(self, step: Step) -> Tensor:
        """By how many pixels down and along each image is moved, int64 [B, 2]."""
        shift = self.config.shift

        def draw(count: int, generator: torch.Generator) -> Tensor:
            return torch.randint(-shift, shift + 1, (2, count), generator=generator, device="cpu").T

        return step.drawn(draw)

    def _weight(self, number: int) -> float:
        return min(1.0, (number + 1) / self.config.anneal) if self.config.anneal else 1.0

    def _regulariser(self, found: Inferred) -> Tensor:
        """What stands for the KL, in nats, a mean over the batch."""
        if self.config.loss == "tcvae":
            parts = TotalCorrelation(found.latents, found.posteriors, self.size)
            return (
                parts.mutual_information + self.config.beta * parts.total_correlation + parts.dimension_wise
            )
        by_latent = torch.cat([channels(kl).mean(0) for kl in found.kl()])
        return self.config.beta * by_latent.clamp(min=self.config.free_bits).sum()


def moved(x: Tensor, places: Tensor) -> Tensor:
    """Images [B, C, H, W], each moved down and along by `places` [B, 2] pixels; the border is repeated."""
    count, height, width = len(x), *x.shape[2:]
    down, along = places.T[..., None].to(x.device)
    rows = (torch.arange(height, device=x.device) + down).clamp_(0, height - 1)
    columns = (torch.arange(width, device=x.device) + along).clamp_(0, width - 1)
    which = torch.arange(count, device=x.device)
    # Indices on both sides of the channels: they come last.
    return x[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def channels(values: Tensor) -> Tensor:
    """[B, L, ...] summed over the pixels of maps: [B, L]."""
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def variational(module: VAE, config: VariationalConfig, dataset: Dataset) -> Variational:
    """The objective that trains `module` on `dataset`. Raises ConfigError where the data is not what it models."""
    if tuple(dataset.shape) != tuple(module.data_shape):
        raise ConfigError(
            f"its samples are {list(dataset.shape)}, the VAE models {list(module.data_shape)}",
            argument="data",
        )
    if module.likelihood is None:
        raise ConfigError("its decoder gives no distribution, and has no ELBO", argument="model")
    images = len(dataset.shape) == 3
    if config.shift and not images:
        raise ConfigError("moves images; rows of a table have no place", argument="shift")
    if images and module.likelihood.levels not in (2, 256):
        raise ConfigError(f"has 256 levels, the VAE models {module.likelihood.levels}", argument="data")
    if module.classes is not None and (dataset.num_classes is None or dataset.num_classes > module.classes):
        raise ConfigError(
            f"has {dataset.num_classes or 'no'} classes, the VAE knows {module.classes}", argument="data"
        )
    if config.loss == "tcvae" and module.groups > 1:
        raise ConfigError("tcvae is of latents whose prior is N(0, 1); take beta", argument="loss")
    return Variational(config, len(dataset), "bits/dim" if images else "nats")
