"""Losses of adversarial training, on logits of a discriminator.

With D = sigmoid(logit), p the data's density and q the generator's, the best discriminator of the first two losses is
D* = p / (p + q) (Goodfellow et al. 2014, proposition 1); the minimax value is then 2 JS(p, q) - log 4.

    name            the discriminator descends                        the generator descends
    minimax         -log D(real) - log(1 - D(fake))                   log(1 - D(fake))        Goodfellow 2014, eq. 1
    non-saturating  the same                                          -log D(fake)            the same, section 3
    lsgan           (logit(real) - 1)^2 + logit(fake)^2               (logit(fake) - 1)^2     Mao et al. 2017, eq. 9
    hinge           relu(1 - logit(real)) + relu(1 + logit(fake))     -logit(fake)            Lim & Ye 2017
    wasserstein     logit(fake) - logit(real)                         -logit(fake)            Arjovsky 2017, alg. 1

"wasserstein" means something only with a critic whose slope is held (``training.penalties``). Each is a mean over
samples and patches. pix2pix and SRGAN's followers call the second one "vanilla". Equation 9 of Mao et al. has a factor
1/2 before each term of "lsgan", which pix2pix's code, and this, have not.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..config import shown
from ..errors import ConfigError

GAN_LOSSES = ("minimax", "non-saturating", "lsgan", "hinge")
LOSSES = (*GAN_LOSSES, "wasserstein")


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator descends, a scalar. kind: one of LOSSES; real, fake: its logits, of any shape.

    Raises ConfigError for another kind.
    """
    if kind == "lsgan":
        return (real - 1).square().mean() + fake.square().mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    _check(kind)
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """What the generator descends, a scalar, of the discriminator's logits for its samples. Raises ConfigError."""
    if kind == "lsgan":
        return (fake - 1).square().mean()
    if kind in ("hinge", "wasserstein"):
        return -fake.mean()
    if kind == "minimax":
        return -F.softplus(fake).mean()
    _check(kind)
    return F.softplus(-fake).mean()


def _check(kind: str) -> None:
    if kind not in LOSSES:
        raise ConfigError(f"expected one of {', '.join(LOSSES)}, got {shown(kind)}", argument="gan_loss")
