"""Training a GAN: a generator G(z, label) against a discriminator D(x, label), by any of the losses there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config import bounded, one_of
from ..errors import ConfigError
from ..models.gan.initial import off_diagonal
from .adversarial import LOSSES, discriminator_loss, generator_loss
from .batch import Dataset
from .objective import Group, Step
from .penalties import clip, gradient_penalty, r1_penalty, weights_of


@dataclass(frozen=True, kw_only=True)
class GANConfig:
    """gan_loss: see ``training.adversarial``. penalty: "gradient" (WGAN-GP) or "r1", see ``training.penalties``, with
    its weight; clip: WGAN's limit of the discriminator's weights, 0 for none. updates: of the discriminator in a step,
    each by its share of the batch. beta1, beta2: of Adam. d_lr: learning rate of the discriminator over that of the
    generator. orthogonal: weight of BigGAN's regularisation of the generator.
    """

    gan_loss: str = one_of(*LOSSES, default="non-saturating")
    penalty: str = one_of("none", "gradient", "r1", default="none")
    penalty_weight: float = bounded(0.0, 1e6, default=10.0)
    clip: float = bounded(0.0, 1e6, default=0.0)
    updates: int = bounded(1, 100, default=1)
    beta1: float = bounded(0.0, 0.9999, default=0.5)
    beta2: float = bounded(0.0, 0.99999, default=0.999)
    d_lr: float = bounded(1e-3, 1e3, default=1.0)
    orthogonal: float = bounded(0.0, 1e3, default=0.0)


@dataclass(frozen=True)
class Adversarial:
    """The objective of the networks "generator" and "discriminator". x: images [B, C, H, W] in [-1, 1], or rows."""

    config: GANConfig
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
        return (
            f"the {self.config.updates} updates of a step share out its batch"
            if self.config.updates > 1
            else ""
        )

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """See ``Objective``."""
        betas = self.config.beta1, self.config.beta2
        rates = {"generator": self.lr, "discriminator": self.lr * self.config.d_lr}
        return {
            name: Group([networks[name]], lr=rate, betas=betas, weight_decay=0.0)
            for name, rate in rates.items()
        }

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The discriminator's, `updates` times, then the generator's, by the discriminator that was just updated.

        The samples of the last update are the generator's too: its weights have not changed since.
        """
        config, discriminator = self.config, networks["discriminator"]
        generator: Any = networks["generator"]
        labels = step.label
        if getattr(generator.config, "num_classes", None) is None:
            labels = None
        parts = [dataclasses.replace(step, x=x) for x in step.x.chunk(config.updates)]
        if len(parts) < config.updates:
            raise ConfigError(
                f"a step of {config.updates} updates needs as many samples, got {len(step.x)}",
                argument="batch_size",
            )
        of_label = [None] * len(parts) if labels is None else labels.to(step.x.device).chunk(config.updates)
        for i, (part, label) in enumerate(zip(parts, of_label, strict=True)):
            real = part.x
            z = part.normal(generator.config.latent)
            with torch.set_grad_enabled(i == len(parts) - 1), step.autocast():
                fake = generator(z, label)
            with step.autocast():
                on_real, on_fake = judged(discriminator, real, fake.detach(), label)
            loss = discriminator_loss(config.gan_loss, on_real.float(), on_fake.float())
            yield "discriminator", loss + self._penalty(discriminator, real, fake, label, part)
            if config.clip:
                clip(discriminator, config.clip)
        with step.autocast():
            on_fake = discriminator(fake, label)
        loss = generator_loss(config.gan_loss, on_fake.float())
        if config.orthogonal:
            loss = loss + config.orthogonal * off_diagonal(weights_of(generator))
        yield "generator", loss

    def _penalty(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, label: Tensor | None, step: Step
    ) -> Tensor | float:
        # In float32: gradients of gradients are small.
        critic = partial(judge, discriminator, label)
        if self.config.penalty == "gradient":
            share = step.uniform().to(real.device)
            found = gradient_penalty(critic, real, fake.float(), share)
        elif self.config.penalty == "r1":
            found = r1_penalty(critic, real)
        else:
            return 0.0
        return self.config.penalty_weight * found


def judged(
    discriminator: nn.Module, real: Tensor, fake: Tensor, label: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits of both, in one batch unless the discriminator has statistics of batches (``joint`` is False)."""
    if not getattr(discriminator, "joint", True):
        return discriminator(real, label), discriminator(fake, label)
    both = None if label is None else torch.cat([label, label])
    on_real, on_fake = discriminator(torch.cat([real, fake.to(real.dtype)]), both).chunk(2)
    return on_real, on_fake


def judge(discriminator: nn.Module, label: Tensor | None, x: Tensor) -> Tensor:
    """Logits [B] of `x`; the arguments stand in an order that ``functools.partial`` can take."""
    values: Tensor = discriminator(x, label)
    return values
