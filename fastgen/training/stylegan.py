"""Training a style-based generator: two styles mixed, lazy R1, and the moving average of w.

What is special beside ``training.gan`` (Karras et al. 2019, StyleGAN; Karras et al. 2020, StyleGAN2):

    mixing      a share of the images have the styles of one z up to a random layer, of another z behind it
                (2019, section 3.1)
    lazy R1     (gamma / 2) |grad D(x)|^2 at real x, every k steps, times k (2020, appendix B)
    w_mean      w_mean <- d w_mean + (1 - d) mean(w), over the batch, in every step (2019, section B); what
                truncation draws samples to

StyleGAN2 is trained without its regularisation of path lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config import bounded, one_of
from .adversarial import LOSSES, discriminator_loss, generator_loss
from .batch import Dataset
from .gan import judge
from .objective import Group, Step
from .penalties import r1_penalty


@dataclass(frozen=True, kw_only=True)
class StyleGANConfig:
    """gan_loss: see ``training.adversarial``. penalty_weight: gamma of R1, 0 for none. r1_every: k. Of 1, R1 is a part
    of the discriminator's loss in every step, as in StyleGAN; of more, an update of its own every k steps, as in
    StyleGAN2. mixing: the share of images with two styles. w_decay: d. beta1, beta2: of Adam. d_lr: learning rate of
    the discriminator over that of the generator.
    """

    gan_loss: str = one_of(*LOSSES, default="non-saturating")
    penalty_weight: float = bounded(0.0, 1e6, default=10.0)
    r1_every: int = bounded(1, 10_000, default=16)
    mixing: float = bounded(0.0, 1.0, default=0.9)
    w_decay: float = bounded(0.0, 1.0, default=0.995)
    beta1: float = bounded(0.0, 0.9999, default=0.0)
    beta2: float = bounded(0.0, 0.99999, default=0.99)
    d_lr: float = bounded(1e-3, 1e3, default=1.0)

    @property
    def lazy(self) -> bool:
        """Whether R1 is an update of its own."""
        return self.r1_every > 1 and self.penalty_weight > 0


@dataclass(frozen=True)
class StyleAdversarial:
    """The objective of the networks "generator", which has styles, and "discriminator". x: [B, C, H, W] in [-1, 1]."""

    config: StyleGANConfig
    lr: float
    unit: str = "loss"

    def inputs(self, batch: Tensor) -> Tensor:
        """uint8 -> float32 in [-1, 1]; numbers as they are."""
        return batch.float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch.float()

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """Nothing is decided by the data."""

    @property
    def whole_batch(self) -> str:
        """See ``Objective``."""
        return "the discriminator compares the images of a batch, and w is averaged over it"

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """See ``Objective``.

        With lazy R1 the discriminator is updated k + 1 times in k steps. Its learning rate times c, and Adam's
        betas to the power c, c = k / (k + 1), make these worth k updates (Karras et al. 2020, appendix B).
        """
        config = self.config
        share = config.r1_every / (config.r1_every + 1) if config.lazy else 1.0
        return {
            name: Group([networks[name]], lr=self.lr * factor, betas=betas, weight_decay=0.0)
            for name, factor, betas in (
                ("generator", 1.0, (config.beta1, config.beta2)),
                ("discriminator", config.d_lr * share, (config.beta1**share, config.beta2**share)),
            )
        }

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The discriminator's, its R1 where it is lazy and due, then the generator's, of the same samples.

        Real and generated images are judged in batches of their own: the discriminator looks at the deviation
        within a batch.
        """
        config, discriminator = self.config, networks["discriminator"]
        generator: Any = networks["generator"]
        labels = None
        if generator.config.num_classes is not None:
            assert step.label is not None
            labels = step.label.to(step.x.device)
        fake = self.samples(generator, labels, step)
        with step.autocast():
            on_real, on_fake = discriminator(step.x, labels), discriminator(fake.detach(), labels)
        loss = discriminator_loss(config.gan_loss, on_real.float(), on_fake.float())
        # In float32: gradients of gradients are small.
        real_judge = partial(judge, discriminator, labels)
        if config.penalty_weight and not config.lazy:
            loss = loss + config.penalty_weight * r1_penalty(real_judge, step.x)
        yield "discriminator", loss
        if config.lazy and step.number % config.r1_every == 0:
            weight = config.penalty_weight * config.r1_every
            yield "discriminator", weight * r1_penalty(real_judge, step.x)
        with step.autocast():
            on_fake = discriminator(fake, labels)
        yield "generator", generator_loss(config.gan_loss, on_fake.float())

    def samples(self, generator: Any, labels: Tensor | None, step: Step) -> Tensor:
        """Images [B, C, H, W] of random z, two for each, and random noise; as many as there are real ones in `step`.

        Brings w_mean up to date, by the first z of each image.
        """
        count, device = len(step.x), step.x.device

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(*shape, generator=step.generator, dtype=torch.float32, device="cpu")
            return drawn.to(device)

        z = normal(2 * count, generator.config.latent)
        layers = crossovers(count, generator.num_ws, self.config.mixing, step.generator).to(device)
        noise = [normal(count, 1, *shape) for shape in generator.noise_shapes]
        with step.autocast():
            w = generator.mapping(z, None if labels is None else torch.cat([labels, labels]))
            first, second = w.chunk(2)
            moved_average(generator.w_mean, first, self.config.w_decay)
            images: Tensor = generator.synthesis(mixed(first, second, layers, generator.num_ws), noise)
        return images


def crossovers(count: int, layers: int, mixing: float, generator: torch.Generator) -> Tensor:
    """From which layer on each of `count` images has its second style: int64 [count] on the CPU.

    With probability `mixing` any of 1, ..., layers - 1, all alike; else `layers`, which is nowhere. Each image draws
    for itself, as the paper's text says ("a given percentage of images"); its published code draws once a batch.
    """
    drawn = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    if layers < 2:
        return torch.full((count,), layers, dtype=torch.int64, device="cpu")
    places = torch.randint(1, layers, (count,), generator=generator, device="cpu")
    return torch.where(drawn < mixing, places, layers)


def mixed(first: Tensor, second: Tensor, layers: Tensor, count: int) -> Tensor:
    """Styles [B, count, w_dim]: of each image `first` [B, w_dim] below the layer of `layers` [B], then `second`."""
    number = torch.arange(count, device=first.device)
    early = number < layers[:, None]
    return torch.where(early[..., None], first[:, None], second[:, None])


@torch.no_grad()
def moved_average(average: Tensor, w: Tensor, decay: float) -> None:
    """average <- decay * average + (1 - decay) * mean(w), in place. average: [w_dim]; w: [B, w_dim]."""
    average.lerp_(w.float().mean(0).to(average.dtype), 1 - decay)
