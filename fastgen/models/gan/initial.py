"""Initial weights, and the regularisation that keeps them close to orthogonal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)
DCGAN_STD = 0.02  # Radford et al. 2016, section 4


@torch.no_grad()
def normal(network: nn.Module) -> None:
    """Filters from N(0, 0.02^2), scales of batch norms from N(1, 0.02^2), biases 0 (Radford et al. 2016)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, DCGAN_STD)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, DCGAN_STD)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def scaled(network: nn.Module, slope: float) -> None:
    """Filters and matrices from N(0, 2 / ((1 + slope^2) * inputs)), biases 0 (He et al. 2015, equations 14 and 15).

    slope: of the leaky ReLUs between them. Activations then keep their size through layers that no norm scales, where
    weights of `normal` shrink them, and the gradient, to next to nothing.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def orthogonal(network: nn.Module) -> None:
    """Orthogonal matrices (Saxe et al. 2014), as BigGAN begins with (Brock et al. 2019, section 3); biases 0.

    Of a weight with a spectral norm it is the weight before its division.
    """
    for module in network.modules():
        if isinstance(module, LAYERS):
            own: Any = module
            if parametrize.is_parametrized(module, "weight"):
                nn.init.orthogonal_(own.parametrizations.weight.original)
            else:
                nn.init.orthogonal_(own.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def off_diagonal(weights: Iterable[Tensor]) -> Tensor:
    """|W W^T * (1 - I)|_F^2, summed over weights of two dimensions or more (Brock et al. 2019, eq. 3).

    W is a weight as a matrix of its outputs. The norms of rows are free, only their directions are held apart. The
    gradient with respect to W is 4 (W W^T * (1 - I)) W.
    """
    total = []
    for weight in weights:
        if weight.dim() < 2:
            continue
        rows = weight.flatten(1)
        gram = rows @ rows.t()
        total.append((gram - torch.diag(gram.diagonal())).square().sum())
    return torch.stack(total).sum()
