"""Small networks from images to images, with the weights and statistics of trained ones, and engines of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.checkpoint import Part
from fastgen.config import from_dict
from fastgen.engines import TranslateEngine
from fastgen.models.translate.discriminators import (
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    PixelDiscriminator,
    PixelDiscriminatorConfig,
)
from fastgen.models.translate.resnet import ResNetGenerator, ResNetGeneratorConfig
from fastgen.models.translate.unet import UNetGenerator, UNetGeneratorConfig
from tests.converters.pix2pix_layout import filled

CLASSES: dict[str, tuple[type, Any]] = {
    "unet_generator": (UNetGeneratorConfig, UNetGenerator),
    "resnet_generator": (ResNetGeneratorConfig, ResNetGenerator),
    "patch_discriminator": (PatchDiscriminatorConfig, PatchDiscriminator),
    "pixel_discriminator": (PixelDiscriminatorConfig, PixelDiscriminator),
}
UNET = Part("unet_generator", {"channels": 4, "downs": 6, "dropout": True})
SMALL_UNET = Part("unet_generator", {"channels": 4, "downs": 5})
RESNET = Part(
    "resnet_generator", {"channels": 4, "blocks": 2, "dropout": True, "norm": "batch", "out_channels": 2}
)
PATCH = Part("patch_discriminator", {"channels": 4, "layers": 2})
PIXEL = Part("pixel_discriminator", {"channels": 4, "in_channels": 0, "out_channels": 2})
# name -> parts, as (part, changes to its configuration)
CASES: dict[str, dict[str, Part]] = {
    "unet": {"generator": UNET, "discriminator": PATCH},
    "unet 32": {"generator": SMALL_UNET, "discriminator": PATCH},
    "resnet": {"generator": RESNET, "discriminator": PIXEL},
}


def network(part: Part, seed: int = 0, **changes: Any) -> nn.Module:
    """Of a part's architecture, in evaluation mode."""
    config, module = CLASSES[part.architecture]
    made = module(from_dict(config, {**part.config, **changes}, "test"))
    return filled(made, seed).requires_grad_(False).eval()


def engine(name: str = "unet", norm: str | None = None, **options: Any) -> TranslateEngine:
    """On the CPU; norm: of all networks."""
    changes = {} if norm is None else {"norm": norm}
    networks = {part: network(made, i, **changes) for i, (part, made) in enumerate(CASES[name].items())}
    architectures = {part: made.architecture for part, made in CASES[name].items()}
    return TranslateEngine(networks, device="cpu", architectures=architectures, **options)


def images(count: int, height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """Random ones in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator) * 2 - 1
