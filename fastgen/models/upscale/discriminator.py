"""The discriminator of SRGAN (Ledig et al. 2017, figure 4), of images of any size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ...config import bounded

SLOPE = 0.2


@dataclass(frozen=True)
class SRDiscriminatorConfig:
    """Options of :class:`SRDiscriminator`. channels: of the first layer; doubled with each of `stages` halvings."""

    in_channels: int = bounded(1, 16, default=3)
    channels: int = bounded(1, 512, default=64)
    stages: int = bounded(1, 6, default=4)


class SRDiscriminator(nn.Module):
    """[B, C, H, W] in [-1, 1] -> logits [B]: pairs of convolutions, the second of stride 2, then a mean over pixels."""

    def __init__(self, config: SRDiscriminatorConfig) -> None:
        super().__init__()
        before = config.in_channels
        layers: list[nn.Module] = []
        for stage in range(config.stages):
            width = config.channels * 2**stage
            for stride in (1, 2):
                layers.append(nn.Conv2d(before, width, 3, stride, 1))
                if len(layers) > 1:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.LeakyReLU(SLOPE))
                before = width
        self.layers = nn.Sequential(*layers)
        self.score = nn.Sequential(
            nn.Conv2d(before, 2 * before, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(2 * before, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.layers(x).mean((2, 3), keepdim=True)).flatten()
