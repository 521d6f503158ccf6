"""The export form of super-resolution networks: an image of any size, enlarged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models.upscale.upscaler import Upscaler
from .form import BATCH, ExportForm, Interface, Port, Tensors

SIZE = 48  # of the images that the two forms are compared with, where nobody says another


class _Upscaler(nn.Module):
    """The network between images in [-1, 1]."""

    def __init__(self, network: Upscaler) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((self.network((x + 1) / 2) * 2 - 1).clamp(-1, 1),)


def _interface(network: Upscaler) -> Interface:
    x = Port("x", (BATCH, network.in_channels, "height", "width"), "images in [-1, 1]")
    enlarged = ("scaled_height", "scaled_width") if network.scale > 1 else ("height", "width")
    y = Port(
        "y",
        (BATCH, network.out_channels, *enlarged),
        f"the images, {network.scale} times as high and wide, in [-1, 1]",
    )
    return Interface((x,), (y,), {"height": network.multiple, "width": network.multiple})


def _make(network: Upscaler) -> nn.Module:
    return _Upscaler(network).eval()


def _reference(network: Upscaler, x: Tensor) -> Tensors:
    return ((network((x + 1) / 2) * 2 - 1).clamp(-1, 1),)


def _sizes(network: Upscaler) -> dict[str, int]:
    side = -(-SIZE // network.multiple) * network.multiple
    return {"height": side, "width": side}


def _example(network: Upscaler, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    height, width = {**_sizes(network), **sizes}.values()
    shape = (batch, network.in_channels, height, width)
    return (torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1,)


UPSCALER = ExportForm(
    name="upscaler",
    about="images, enlarged",
    interface=_interface,
    make=_make,
    reference=_reference,
    example=_example,
    sizes=_sizes,
)
