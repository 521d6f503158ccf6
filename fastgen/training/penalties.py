"""What keeps a discriminator's gradients small: WGAN's clipping and gradient penalty, R1.

With a critic f of Lipschitz constant 1, max_f E f(real) - E f(fake) is the Wasserstein-1 distance of the two
distributions (Villani 2009, theorem 5.10; Arjovsky et al. 2017, eq. 2): finite, and differentiable almost everywhere in
the generator's parameters, also where the supports do not meet and the Jensen-Shannon divergence is log 2 throughout.

    clipping            |w| <= c for every weight, after every update         Arjovsky et al. 2017, algorithm 1
    gradient penalty    (|grad f(x)| - 1)^2 at points between real and fake   Gulrajani et al. 2017, eq. 3
    R1                  |grad D(x)|^2 / 2 at real x, of any loss              Mescheder et al. 2018, eq. 9
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Critic = Callable[[Tensor], Tensor]  # x [B, ...] -> values [B]


@torch.no_grad()
def clip(network: nn.Module, limit: float) -> None:
    """Every parameter into [-limit, limit]."""
    for parameter in network.parameters():
        parameter.clamp_(-limit, limit)


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """The mean of (|grad f| - 1)^2 at share * real + (1 - share) * fake, a scalar that can be differentiated again.

    share: [B], uniform in [0, 1], a point on each line between real[i] and fake[i].
    """
    share = share.view(-1, *[1] * (real.dim() - 1))
    between = (share * real + (1 - share) * fake.detach()).requires_grad_(True)
    return (_gradient(critic, between).flatten(1).norm(dim=1) - 1).square().mean()


def r1_penalty(discriminator: Critic, real: Tensor) -> Tensor:
    """The mean of |grad D|^2 / 2 over real samples, a scalar that can be differentiated again."""
    x = real.detach().requires_grad_(True)
    return 0.5 * _gradient(discriminator, x).flatten(1).square().sum(1).mean()


def _gradient(function: Critic, x: Tensor) -> Tensor:
    with torch.enable_grad():
        values = function(x)
        (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))


def weights_of(network: nn.Module) -> Iterable[Tensor]:
    """Weights that an orthogonal regularisation is for: of layers; an embedding's rows are classes."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            yield module.weight
