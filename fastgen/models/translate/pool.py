"""The pool of earlier results that a discriminator is shown while it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...config import bounded, shown
from ...errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImagePoolConfig:
    """images: how many are kept, of `channels` x height x width."""

    images: int = bounded(1, 10_000)
    channels: int = bounded(1, 64)
    size: tuple[int, ...] = bounded(1, 1 << 16, max_items=2)

    def __post_init__(self) -> None:
        if len(self.size) != 2:
            raise ConfigError(
                f"expected height and width, 2 numbers, got {shown(self.size)}", argument="size"
            )


class ImagePool(nn.Module):
    """Generated images of earlier steps, for the discriminator (Shrivastava et al. 2017, section 2.3).

    A module without parameters, so that a run's state file keeps it as it keeps weights, and a run goes on exactly.
    """

    kept: Tensor
    count: Tensor

    def __init__(self, config: ImagePoolConfig) -> None:
        super().__init__()
        shape = (config.images, config.channels, *config.size)
        self.register_buffer("kept", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`images` [B, C, H, W], about half of them swapped for kept ones, as float32. The first ones fill the pool.

        Raises ConfigError for images of other channels or another size than the pool's.
        """
        if images.ndim != 4 or images.shape[1:] != self.kept.shape[1:]:
            raise ConfigError(
                f"expected images [B, C, H, W] with [C, H, W] = {list(self.kept.shape[1:])}, got {list(images.shape)}",
                argument="images",
            )
        given, size = images.float().clone(), len(self.kept)
        for i in range(len(given)):
            count = int(self.count)
            if count < size:
                self.kept[count] = given[i]
                self.count += 1
            elif torch.rand((), generator=generator, dtype=torch.float32, device="cpu") < 0.5:
                chosen = int(torch.randint(size, (), generator=generator, device="cpu"))
                given[i], self.kept[chosen] = self.kept[chosen].clone(), given[i].clone()
        return given
