"""Twins of the networks of GANs: spectral norm and batch norm in the weights, activations in place."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.building import without_values
from ..models.gan.biggan import BigGAN, BigGANDeep, BigGANDeepDiscriminator, BigGANDiscriminator
from ..models.gan.dcgan import DCGAN, SLOPE, DCGANDiscriminator, planes_of
from ..models.gan.sagan import SAGAN, SAGANDiscriminator
from ..models.gan.stylegan.stylegan import StyleGAN
from ..models.gan.stylegan.stylegan2 import StyleGAN2
from ..models.gan.wgan import WGAN, Critic
from .exactly import hooked
from .folding import baked, folded
from .gan_residual import FusedResidualDiscriminator, FusedResidualGenerator
from .onednn import OneDNNConv, takes
from .stylegan import FusedStyleGAN
from .stylegan2 import FusedStyleGAN2
from .transposed import transposed


@torch.no_grad()
def fused(network: nn.Module) -> nn.Module:
    """A module that computes what `network` computes at inference; what is not known here, or has hooks, is itself."""
    make = TWINS.get(type(network))
    if make is None or any(map(hooked, network.modules())):
        return network
    return make(network).eval().requires_grad_(False)


class FusedDCGAN(nn.Module):
    """`DCGAN`: its first layer as a matrix product, of a label as a row of a table."""

    def __init__(self, network: DCGAN) -> None:
        super().__init__()
        self.latent = network.config.latent
        first, *layers = folded(network.layers)
        assert isinstance(first, nn.ConvTranspose2d)
        self.first = OnePixel(first, self.latent, network.embedding)
        self.layers = nn.ModuleList(_convolution(layer) for layer in layers if is_convolution(layer))

    def forward(self, z: Tensor, labels: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """See ``DCGAN``."""
        x = self.first(z, labels)
        for layer in self.layers:
            x = layer(x.relu_())
        return x.tanh_()


class OnePixel(nn.Module):
    """A transposed convolution of a single pixel [z, embedding of a label] as a product; channels-last images."""

    def __init__(self, conv: nn.ConvTranspose2d, latent: int, embedding: nn.Embedding | None) -> None:
        super().__init__()
        top, left = (int(side) for side in conv.padding)
        weight = conv.weight.detach()
        height, width = weight.shape[2:]
        # [height, width, out, in]: pixels that the padding cuts off never are.
        rows = weight[:, :, top : height - top, left : width - left].permute(2, 3, 1, 0)
        self.size = (rows.shape[0], rows.shape[1], rows.shape[2])
        rows = rows.flatten(0, 2)
        bias = None if conv.bias is None else conv.bias.detach().repeat(self.size[0] * self.size[1])
        with without_values():
            self.linear = nn.Linear(latent, len(rows), bias=bias is not None and embedding is None)
            self.table = None if embedding is None else nn.Embedding(embedding.num_embeddings, len(rows))
        self.linear.weight = _frozen(rows[:, :latent].contiguous())
        if self.table is None:
            if bias is not None:
                self.linear.bias = _frozen(bias)
        else:
            assert embedding is not None
            # float64: one rounding.
            of_label = embedding.weight.double() @ rows[:, latent:].double().t()
            of_label = of_label if bias is None else of_label + bias.double()
            self.table.weight = _frozen(of_label.to(weight.dtype))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """[B, out, height, width]."""
        x = self.linear(z)
        if self.table is not None:
            x += self.table(labels)
        return x.view(-1, *self.size).permute(0, 3, 1, 2)


class FusedDCGANDiscriminator(nn.Module):
    """`DCGANDiscriminator`; of a pooled head the features are summed once."""

    def __init__(self, network: DCGANDiscriminator) -> None:
        super().__init__()
        self.config = network.config
        # Where a norm of single samples stands behind a convolution, it stays.
        self.layers = nn.ModuleList(
            _convolution(layer) for layer in folded(network.layers) if not isinstance(layer, nn.LeakyReLU)
        )
        self.head = _convolution(baked(network.head))
        self.embedding = None if network.embedding is None else baked(network.embedding)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """See ``DCGANDiscriminator``."""
        config = self.config
        if config.conditioning == "concat":
            x = torch.cat([x, planes_of(x, labels, config.num_classes)], dim=1)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x)
            # The activation stands behind the norm where there is one.
            if i == last or is_convolution(self.layers[i + 1]):
                x = F.leaky_relu_(x, SLOPE)
        pooled = x.sum((2, 3)) if config.head == "pool" or self.embedding is not None else None
        logits: Tensor = self.head(x if config.head == "conv" else pooled).flatten(0)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * pooled).sum(1)
        return logits


def is_convolution(layer: nn.Module) -> bool:
    """Whether it is one, or the twin of one."""
    plain = getattr(layer, "plain", layer)
    return isinstance(plain, (nn.Conv2d, nn.ConvTranspose2d))


def _convolution(layer: nn.Module) -> nn.Module:
    """The fast form of a convolution here; of another layer one that has its values, not the reference's module."""
    if isinstance(layer, nn.ConvTranspose2d):
        return transposed(layer)
    if isinstance(layer, nn.Conv2d) and takes(layer):
        return OneDNNConv(layer, prepacked=True)
    if isinstance(layer, nn.InstanceNorm2d):
        return _of_each_channel(layer)
    return copy.copy(layer)


def _of_each_channel(norm: nn.InstanceNorm2d) -> nn.GroupNorm:
    """The same norm, as one of groups: PyTorch rounds means of instance norms to the type of the weights."""
    made = nn.GroupNorm(norm.num_features, norm.num_features, norm.eps, device="meta")
    made.weight, made.bias = _frozen(norm.weight.detach()), _frozen(norm.bias.detach())
    return made


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    DCGAN: FusedDCGAN,
    WGAN: FusedDCGAN,
    **dict.fromkeys((SAGAN, BigGAN, BigGANDeep), FusedResidualGenerator),
    StyleGAN: FusedStyleGAN,
    StyleGAN2: FusedStyleGAN2,
    DCGANDiscriminator: FusedDCGANDiscriminator,
    Critic: FusedDCGANDiscriminator,
    **dict.fromkeys(
        (SAGANDiscriminator, BigGANDiscriminator, BigGANDeepDiscriminator), FusedResidualDiscriminator
    ),
}
