"""Fast twins in place of a reference network's blocks."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from ..models import blocks as reference
from ..models import resample, unet_blocks
from ..models.unet import UNet
from ..models.vae import autoencoder_kl, convolutional, hierarchical, vector
from .blocks import FusedAdaResidual, FusedAttention, FusedNorm, FusedResidual, convolution, whole
from .exactly import hooked
from .folding import baked
from .networks import COUPLING_NETWORKS, sequential, twin
from .onednn import OneDNNConv, OneDNNJoined, OneDNNUp, takes_up, why_not
from .transposed import OneDNNTransposed, PhasedTransposed, transposed
from .twin import Twin
from .unet import FusedUNet

# They call the modules in them, each a twin then, and look at nothing else of them.
CONTAINERS: tuple[type[nn.Module], ...] = (
    nn.ModuleList,
    nn.ModuleDict,
    unet_blocks.DownBlock,
    unet_blocks.SkipDownBlock,
    unet_blocks.UpBlock,
    unet_blocks.SkipUpBlock,
    unet_blocks.KUpBlock,
    unet_blocks.MidBlock,
    resample.Downsample,
    resample.Upsample,
    convolutional.ConvolutionalVAE,
    convolutional.ConvEncoder,
    convolutional.ConvDecoder,
    convolutional.Told,
    vector.VectorVAE,
    vector.Perceptron,
    hierarchical.HierarchicalVAE,
    hierarchical.Group,
    hierarchical.Residual,
    autoencoder_kl.AutoencoderKL,
    autoencoder_kl.KLEncoder,
    autoencoder_kl.KLDecoder,
    autoencoder_kl.DownLevel,
    autoencoder_kl.UpLevel,
    autoencoder_kl.Middle,
)


@torch.no_grad()
def swap(network: nn.Module) -> nn.Module:
    """A module that computes what `network` computes at inference, without gradients, with fast twins of its blocks.

    It walks what is made of the blocks in ``fastgen.models``; any other module, and one with hooks, stays as it is.
    Parameters are shared but for those that are laid out or computed anew: filters for oneDNN, batch norm, weight norm,
    spectral norm, stacked projections. These hold the values of now. `network` is not changed.
    """
    kind = type(network)
    if hooked(network):
        return network
    if isinstance(network, UNet) and kind is UNet and not {"embed", "denoise"} & set(vars(network)):
        return FusedUNet(network, _children(network))
    if kind in TWINS:
        return TWINS[kind](network) if whole(network) else network
    if isinstance(network, nn.Sequential) and kind is nn.Sequential:
        return sequential(network, prepacked=True, swapped=swap)
    if kind in COUPLING_NETWORKS:
        return twin(network)
    if isinstance(network, resample.Upsample) and takes_up(network):
        return OneDNNUp(network)
    if kind in CONTAINERS:
        shallow = copy.copy(network)
        shallow._modules = dict(_children(network))
        return shallow
    plain = baked(network)
    if type(plain) is nn.ConvTranspose2d:
        return transposed(plain)
    return convolution(plain) if type(plain) is nn.Conv2d else plain


TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    reference.ResidualBlock: FusedResidual,
    reference.AdaResidualBlock: FusedAdaResidual,
    reference.Attention: FusedAttention,
    reference.NormAct: FusedNorm,
}


def _children(network: nn.Module) -> dict[str, nn.Module | None]:
    return {name: None if module is None else swap(module) for name, module in network._modules.items()}


def census(network: nn.Module) -> dict[str, dict[str, int]]:
    """How many blocks of each kind run as twins ("fused"), and how many layers as they are ("plain")."""
    counts: dict[str, Counter[str]] = {"fused": Counter(), "plain": Counter()}

    def walk(module: nn.Module) -> None:
        name = type(module).__name__
        if isinstance(module, (Twin, FusedResidual, FusedAdaResidual, FusedAttention)):
            counts["fused"][name] += 1
        elif type(module) not in EMPTY and next(module.children(), None) is None:
            counts["plain"][name] += 1
        for child in module.children():
            walk(child)

    walk(network)
    return {kind: dict(sorted(found.items())) for kind, found in counts.items()}


ONEDNN = (OneDNNConv, OneDNNUp, OneDNNJoined, OneDNNTransposed, PhasedTransposed)
EMPTY = (nn.Identity, nn.Dropout, nn.ModuleList, nn.ModuleDict, nn.Sequential)


def convolutions(network: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """Whose convolutions `network`, which `swap` made, calls there; on a CPU, why not oneDNN's."""
    if any(isinstance(module, ONEDNN) for module in network.modules()):
        return "oneDNN's own calls"
    if device.type != "cpu":
        return "PyTorch's"
    if not census(network)["fused"]:
        return "PyTorch's: nothing in the network has a twin"
    return f"PyTorch's: {why_not(dtype) or 'no twin has one'}"
