"""The U-Net as it runs: fused blocks, and everything that time and label say to them in one product."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models.blocks import ACTIVATIONS
from ..models.unet import UNet
from .blocks import FusedAdaResidual, FusedResidual, stacked

UNCHANGED = "none"  # the name of no activation


class FusedUNet(UNet):
    """`UNet` of fused blocks.

    What the blocks are told of time and label does not depend on the image: `condition` computes it for all of them,
    and a sampler keeps it from step to step. width: how many numbers that is.
    """

    def __init__(self, network: UNet, children: Mapping[str, nn.Module | None]) -> None:
        """children: the twins of the network's modules, by name."""
        nn.Module.__init__(self)
        vars(self).update(vars(network) | {"_modules": dict(children)})
        self.projections = nn.ModuleDict()
        self.width = 0
        self._gather()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.denoise(x, self.condition(t, label, x.dtype), t)

    def condition(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What `denoise` takes as embedding: `dtype` [B, width]."""
        emb = self.embed(t, label, dtype)
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
