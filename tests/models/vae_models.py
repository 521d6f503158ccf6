"""Small VAEs that tests share."""

from __future__ import annotations

from typing import Any

import torch

from fastgen.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fastgen.models.vae.convolutional import ConvolutionalVAE, ConvolutionalVAEConfig
from fastgen.models.vae.hierarchical import HierarchicalVAE, HierarchicalVAEConfig
from fastgen.models.vae.vae import VAE
from fastgen.models.vae.vector import VectorVAE, VectorVAEConfig


def flat(**changes: Any) -> ConvolutionalVAE:
    """Of 8x8 grey images, 3 latents."""
    values = {"sample_size": (8, 8), "latents": 3, "channels": (4, 6), "hidden": (10,), **changes}
    return filled(ConvolutionalVAE(ConvolutionalVAEConfig(**values)))


def hierarchical(**changes: Any) -> HierarchicalVAE:
    """Of 8x8 grey images, three groups of latents at two levels."""
    values = {
        "sample_size": (8, 8),
        "in_channels": 1,
        "channels": (4, 6),
        "latents": (1, 2),
        "groups": (1, 2),
    }
    return filled(HierarchicalVAE(HierarchicalVAEConfig(**{**values, **changes})))


def vector(**changes: Any) -> VectorVAE:
    """Of rows of 5 columns, 2 latents."""
    return filled(VectorVAE(VectorVAEConfig(**{"features": 5, "hidden": (8,), **changes})))


MODELS = {
    "bernoulli": flat,
    "logistic": lambda: flat(likelihood="logistic", num_classes=4),
    "gaussian": lambda: flat(likelihood="gaussian", sigma="shared", num_classes=4),
    "fixed": lambda: flat(likelihood="gaussian", sigma="fixed"),
    "hierarchical": hierarchical,
    "hierarchical-classes": lambda: hierarchical(num_classes=4, likelihood="gaussian"),
    "vector": vector,
    "vector-learned": lambda: vector(sigma="learned", num_classes=4),
}


ARCHITECTURES = {
    "autoencoder_kl": lambda: filled(
        AutoencoderKL(AutoencoderKLConfig(sample_size=(16, 16), block_out_channels=(4, 8), norm_num_groups=2))
    ),
    "hvae": MODELS["hierarchical-classes"],
    "vae": MODELS["logistic"],
    "vector_vae": vector,
}


def filled(vae: VAE, seed: int = 0) -> Any:
    """Random weights everywhere, so that nothing is zero by its initial values; standardised by some numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            if not name.endswith("log_sigma"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
        if isinstance(vae, VectorVAE) and vae.standardise is not None:
            vae.standardise.initialize(3 + 2 * torch.randn(64, vae.config.features, generator=generator))
    return vae.eval()
