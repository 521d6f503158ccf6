"""Spectral normalisation: a weight divided by its largest singular value (Miyato et al. 2018)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

EPS = 1e-12


class SpectralNorm(nn.Module):
    """The parametrisation W / sigma(W), W as a matrix of `rows` rows, those of its dimension `dim`.

    sigma is found by the power method (algorithm 1 of the paper): u is kept, v = W^T u / |W^T u|, sigma = |W v|. In
    training mode each call replaces u by W v / |W v|; in evaluation mode the result depends on W and u alone. Gradients
    run through sigma = u^T W v with u and v held fixed (eq. 9-12).
    """

    u: Tensor

    def __init__(self, rows: int, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("u", torch.randn(rows, dtype=torch.float32))

    def sigma(self, weight: Tensor) -> Tensor:
        """The largest singular value as it is known so far, in at least float32."""
        matrix = weight.transpose(0, self.dim).flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        with torch.no_grad():
            v = F.normalize(matrix.t().mv(self.u.to(matrix.dtype)), dim=0, eps=EPS)
            u = F.normalize(matrix.mv(v), dim=0, eps=EPS)
            if self.training:
                self.u.copy_(u)
        return u.dot(matrix.mv(v))

    def forward(self, weight: Tensor) -> Tensor:
        """W / sigma(W), in the type of `weight`; sigma is never rounded to a shorter type than float32."""
        with torch.autocast(weight.device.type, enabled=False):
            sigma = self.sigma(weight)
            return (weight.to(sigma.dtype) / sigma).to(weight.dtype)


def spectral(module: Any, on: bool = True) -> Any:
    """`module` with its weight divided by its spectral norm, if `on`: a convolution, linear layer or embedding.

    Rows are outputs; of an embedding its entries, as in the code of BigGAN for PyTorch.
    """
    if not on:
        return module
    dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    norm = SpectralNorm(module.weight.shape[dim], dim)
    parametrize.register_parametrization(module, "weight", norm, unsafe=True)
    return module


def without_parametrizations(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose spectral norms are divided out; `network` and its classes stay as they are."""
    made = copy.deepcopy(network).eval()
    for name, module in list(made.named_modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        kind: Any = type(module).__bases__[
            0
        ]  # `remove_parametrizations` would change the class of the original, too
        plain = kind.__new__(kind)
        vars(plain).update(vars(module))
        plain._modules = {n: m for n, m in module._modules.items() if n != "parametrizations"}
        plain._parameters = {"weight": nn.Parameter(module.weight.detach().clone()), **module._parameters}
        made.set_submodule(name, plain)
    return made
