"""The U-Net as it runs: fused blocks, and everything that time and label say to them in one product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..models.blocks import ACTIVATIONS, AdaResidualBlock, ResidualBlock
from ..models.unet import UNet
from .blocks import FusedAdaResidual, FusedResidual, stacked

UNCHANGED = "none"  # the name of no activation
FUSED = (FusedResidual, FusedAdaResidual)


class FusedUNet(UNet):
    """`UNet` of fused blocks.

    What the blocks are told of time and label does not depend on the image: `condition` computes it for all of them,
    and a sampler keeps it from step to step. width: how many numbers that is. Where a block has no twin it is the
    embedding itself, of which each block makes what it needs.
    """

    def __init__(self, network: UNet, children: Mapping[str, nn.Module | None]) -> None:
        """children: the twins of the network's modules, by name."""
        nn.Module.__init__(self)
        vars(self).update(vars(network) | {"_modules": dict(children)})
        self.projections = nn.ModuleDict()
        self.width = 0
        if all(isinstance(block, FUSED) for block in _told(self)):
            self._gather()
        else:
            self.width = network.config.emb_channels

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.denoise(x, self.condition(t, label, x.dtype), t)

    def condition(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What `denoise` takes as embedding: `dtype` [B, width]."""
        emb = self.embed(t, label, dtype)
        if not self.projections:
            return emb
        parts = [
            linear(emb if act == UNCHANGED else ACTIVATIONS[act](emb))
            for act, linear in self.projections.items()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _gather(self) -> None:
        """Stack the blocks' projections of the embedding, by the activation before them, and tell them their places."""
        found: dict[str, list[tuple[FusedResidual | FusedAdaResidual, nn.Linear]]] = {}
        for block in self.modules():
            if isinstance(block, FusedResidual):
                assert block.time_emb_proj is not None
                found.setdefault(block.act, []).append((block, block.time_emb_proj))
                block.time_emb_proj = None
            elif isinstance(block, FusedAdaResidual):
                assert block.linears is not None
                for linear in block.linears:
                    assert isinstance(linear, nn.Linear)
                    found.setdefault(UNCHANGED, []).append((block, linear))
                block.linears = None
        for act, group in found.items():
            self.projections[act] = stacked([linear for _, linear in group])
            for block, linear in group:
                place = slice(self.width, self.width + linear.out_features)
                block.places = (*block.places, place)
                self.width = place.stop


def _told(network: nn.Module) -> Iterator[nn.Module]:
    """The blocks of `network`, fused or not, that are told of time and label."""
    for name, module in network.named_modules():
        if isinstance(module, (*FUSED, ResidualBlock, AdaResidualBlock)):
            yield module
        elif isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "resnets":
            yield from module  # whatever stands there is called with the embedding
