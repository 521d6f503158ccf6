"""Small engines for style transfer with random weights, and pictures for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.engines.style import StyleEngine
from fastgen.models.style.adain import AdaINTransfer, AdaINTransferConfig
from fastgen.models.style.microast import MicroAST, MicroASTConfig
from fastgen.models.style.network import StyleNetwork

NAMES = ("adain", "microast")


def network(name: str, seed: int = 0, **options: Any) -> StyleNetwork:
    """A small network, with weights of a size that passes through its layers, without gradients."""
    torch.manual_seed(seed)
    made: StyleNetwork
    if name == "adain":
        made = AdaINTransfer(AdaINTransferConfig(channels=(8, 64, 64), depths=(2, 2), **options))
    else:
        made = MicroAST(MicroASTConfig(channels=4, **options))
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, (2 / module.weight[0].numel()) ** 0.5)
            assert module.bias is not None
            nn.init.normal_(module.bias, 0.0, 0.1)
    with torch.no_grad():  # pictures that are neither black nor white
        last = [module for module in made.decoder.modules() if isinstance(module, nn.Conv2d)][-1]  # type: ignore[union-attr, operator]
        last.weight.mul_(0.1)
        assert last.bias is not None
        last.bias.fill_(0.5)
    return made.requires_grad_(False).eval()


def engine(name: str, seed: int = 0, **options: Any) -> StyleEngine:
    """An engine of `network`, on the CPU."""
    return StyleEngine({"network": network(name, seed)}, device="cpu", **options)


def picture(seed: int, height: int = 45, width: int = 62, count: int = 1) -> Tensor:
    """Random colours, float32 [count, 3, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1
