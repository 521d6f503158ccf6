"""Training pix2pix: a conditional GAN with an L1 loss (Isola et al. 2017, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import bounded, one_of
from .adversarial import GAN_LOSSES, discriminator_loss, generator_loss
from .batch import Dataset
from .objective import Group, Step

ADAM_BETAS = (0.5, 0.999)  # section 3.3


@dataclass(frozen=True, kw_only=True)
class TranslationConfig:
    """gan_loss: which loss, see ``training.adversarial``. l1_weight: lambda of eq. 4. jitter: pixels by which pairs are
    enlarged before they are cropped at random to their size (section 6.2: from 256 to 286).
    """

    gan_loss: str = one_of(*GAN_LOSSES, default="non-saturating")
    l1_weight: float = bounded(0.0, 1e6, default=100.0)
    jitter: int = bounded(0, 4096, default=0)


@dataclass(frozen=True)
class Translation:
    """The objective of a generator G(x) and a discriminator D(x, y), x and y [B, C, H, W] in [-1, 1].

    The discriminator's loss is halved, which slows it against the generator (section 3.3).
    """

    config: TranslationConfig
    unit: str = "loss"

    def inputs(self, batch: Tensor) -> Tensor:
        """uint8 -> float32 in [-1, 1]."""
        return batch.float() / 127.5 - 1

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """Nothing is decided by the data."""

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """See ``Objective``."""
        return {
            name: Group([networks[name]], betas=ADAM_BETAS, weight_decay=0.0)
            for name in ("generator", "discriminator")
        }

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The discriminator's, then the generator's, by the discriminator that was just updated.

        The generator runs once per step: its weights do not change in between, so that its graph stays right.
        """
        generator, discriminator = networks["generator"], networks["discriminator"]
        assert step.target is not None
        x, y = self._jittered(step.x, step.target, step)
        with step.autocast():
            fake = generator(x)
        pairs = torch.cat([x, fake.detach().float()], dim=1)
        if "pool" in networks:
            pairs = networks["pool"](pairs, step.generator)
        shown, made = pairs.split([x.shape[1], fake.shape[1]], dim=1)
        with step.autocast():
            real, wrong = discriminator(x, y), discriminator(shown, made)
        yield "discriminator", 0.5 * discriminator_loss(self.config.gan_loss, real.float(), wrong.float())

        with step.autocast():
            judged = discriminator(x, fake)
        gan = generator_loss(self.config.gan_loss, judged.float())
        yield "generator", gan + self.config.l1_weight * F.l1_loss(fake.float(), y)

    def _jittered(self, x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Pairs enlarged by `jitter` pixels, each cropped at a place of its own."""
        if not self.config.jitter:
            return x, y
        height, width = x.shape[2:]
        size = height + self.config.jitter, width + self.config.jitter
        large = F.interpolate(torch.cat([x, y], dim=1), size, mode="bicubic", align_corners=False)
        places = step.integers(0, self.config.jitter + 1, 2).tolist()
        crops = [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(large, places, strict=True)
        ]
        both = torch.stack(crops).clamp_(-1, 1)
        return both[:, : x.shape[1]], both[:, x.shape[1] :]
