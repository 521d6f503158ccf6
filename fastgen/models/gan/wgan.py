"""WGAN and WGAN-GP (Arjovsky et al. 2017, Gulrajani et al. 2017): the layers of DCGAN, with a critic for a judge."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import one_of
from .dcgan import DCGAN, DCGANConfig, DCGANDiscriminator, DCGANDiscriminatorConfig


@dataclass(frozen=True, kw_only=True)
class WGANConfig(DCGANConfig):
    """See :class:`DCGANConfig`."""


class WGAN(DCGAN):
    """The generator: DCGAN's."""


@dataclass(frozen=True, kw_only=True)
class CriticConfig(DCGANDiscriminatorConfig):
    """See :class:`DCGANDiscriminatorConfig`: without a batch norm, which would make a sample's value, and its gradient,
    depend on the others (Gulrajani et al. 2017, section 4).
    """

    norm: str = one_of("layer", "instance", "none", default="layer")


class Critic(DCGANDiscriminator):
    """Values [B] of images, whose mean over data less that over samples approaches the Wasserstein-1 distance."""
