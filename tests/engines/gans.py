"""Small GANs with random weights: one of each architecture, with its discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastgen.architectures import ARCHITECTURES
from fastgen.config import from_dict
from fastgen.engines.gan import GANEngine, request

STAGES = {"channels": 8, "multipliers": [4, 2, 1], "num_classes": 5, "latent": 12}
JUDGE = {
    "size": 16,
    "channels": 8,
    "multipliers": [1, 2, 4],
    "halvings": 2,
    "num_classes": 5,
    "attention": [0],
}
LAYERS = {"kernels": [4, 4, 4], "strides": [1, 2, 2], "paddings": [0, 1, 1]}
CONVS = {"kernels": [4, 4, 4], "strides": [2, 2, 1], "paddings": [1, 1, 0], "size": 16, "widths": [8, 16]}
# name: (architecture and options of the generator, of the discriminator)
CASES: dict[str, tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "dcgan": (("dcgan", {**LAYERS, "latent": 6, "widths": [16, 8]}), ("dcgan_discriminator", CONVS)),
    "dcgan concat": (
        ("dcgan", {**LAYERS, "latent": 6, "widths": [16, 8], "num_classes": 5, "embedding": 3, "bias": True}),
        ("dcgan_discriminator", {**CONVS, "num_classes": 5, "conditioning": "concat", "bias": True}),
    ),
    "dcgan projection": (
        ("dcgan", {**LAYERS, "latent": 6, "widths": [16, 8], "num_classes": 5, "embedding": 3}),
        (
            "dcgan_discriminator",
            {
                **{name: values[:2] for name, values in CONVS.items() if isinstance(values, list)},
                "size": 16,
                "num_classes": 5,
                "conditioning": "projection",
                "head": "pool",
                "norm": "none",
                "spectral_norm": True,
            },
        ),
    ),
    "wgan_gp": (
        ("wgan_gp", {**LAYERS, "latent": 6, "widths": [16, 8]}),
        ("wgan_critic", {**CONVS, "norm": "instance"}),
    ),
    "sagan": (("sagan", {**STAGES, "attention": [0]}), ("sagan_discriminator", JUDGE)),
    "sagan without classes": (
        ("sagan", {**STAGES, "attention": [], "num_classes": None}),
        ("sagan_discriminator", {**JUDGE, "num_classes": None}),
    ),
    "biggan": (("biggan", {**STAGES, "attention": [0], "shared": 7}), ("biggan_discriminator", JUDGE)),
    "biggan, not hierarchical": (
        ("biggan", {**STAGES, "attention": [], "shared": 7, "hierarchical": False, "spectral_norm": False}),
        ("biggan_discriminator", {**JUDGE, "spectral_norm": False}),
    ),
    "biggan_deep": (
        ("biggan_deep", {**STAGES, "attention": [0], "shared": 7}),
        ("biggan_deep_discriminator", JUDGE),
    ),
    "biggan_deep, standing statistics": (
        (
            "biggan_deep",
            {
                **STAGES,
                "attention": [0],
                "shared": 7,
                "levels": 6,
                "reversed_levels": True,
                "spectral_norm": False,
            },
        ),
        ("biggan_deep_discriminator", JUDGE),
    ),
}


def built(architecture: str, options: dict[str, Any]) -> nn.Module:
    """A network with random weights of a trained one's size, and statistics of a batch norm that are not 0 and 1."""
    entry = ARCHITECTURES[architecture]
    network = entry.module(from_dict(entry.config, options, architecture))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.7)
            elif parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return network.eval().requires_grad_(False)


def parts(name: str) -> nn.ModuleDict:
    """Both networks of a case, the same ones every time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        generator, discriminator = CASES[name]
        return nn.ModuleDict({"generator": built(*generator), "discriminator": built(*discriminator)})


def make(name: str, **options: Any) -> GANEngine:
    """An engine on the CPU, in float32 unless `options` say otherwise."""
    settings = request.GANSettings(**options.pop("settings", {}))
    return GANEngine(parts(name), settings, **{"device": "cpu", "dtype": "float32", **options})
