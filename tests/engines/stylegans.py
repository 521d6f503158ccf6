"""Small style-based GANs with random weights: of both versions, with noise that shows and a mean of w."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastgen.architectures import ARCHITECTURES
from fastgen.config import from_dict
from fastgen.engines.gan.style import StyleGANEngine
from fastgen.engines.gan.style_request import StyleGANSettings

SMALL = {"latent": 6, "w_dim": 10, "out_channels": 1, "mapping_layers": 2}
# name: (architecture, options)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stylegan": ("stylegan", {**SMALL, "size": 16, "widths": [8, 6, 4]}),
    "stylegan, of labels": (
        "stylegan",
        {
            **SMALL,
            "size": 12,
            "widths": [6, 5, 4],
            "num_classes": 5,
            "out_channels": 3,
            "input": "latent",
            "shared_noise": True,
            "bias_before_blur": True,
        },
    ),
    "stylegan2": ("stylegan2", {**SMALL, "size": 16, "widths": [8, 6, 4]}),
    "stylegan2, of labels": (
        "stylegan2",
        {**SMALL, "size": 12, "widths": [6, 5, 4], "num_classes": 5, "out_channels": 3, "clamp": 2.0},
    ),
}


def generator(name: str) -> Any:
    """The network of a case, the same every time."""
    architecture, options = CASES[name]
    entry = ARCHITECTURES[architecture]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network: Any = entry.module(from_dict(entry.config, options, architecture))
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                if key.endswith(("bias", "noise_strength", "const")):
                    parameter.add_(0.3 * torch.randn_like(parameter))
            classes = network.config.num_classes
            labels = None if classes is None else torch.randint(classes, (256,))
            network.w_mean.copy_(network.mapping(torch.randn(256, network.config.latent), labels).mean(0))
    return network.eval().requires_grad_(False)


def make(name: str, **options: Any) -> StyleGANEngine:
    """An engine on the CPU, in float32 unless `options` say otherwise."""
    settings = StyleGANSettings(**options.pop("settings", {}))
    networks = nn.ModuleDict({"generator": generator(name)})
    return StyleGANEngine(networks, settings, **{"device": "cpu", "dtype": "float32", **options})
