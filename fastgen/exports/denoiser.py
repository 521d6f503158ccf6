"""The export form of denoising U-Nets: the network's output for a noisy image, its time and its class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.unet import UNet
from .form import BATCH, ExportForm, Interface, Port, Tensors


class _Denoiser(nn.Module):
    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, *label: Tensor) -> tuple[Tensor]:
        return (self.network(x, time, *label),)


def _interface(network: UNet) -> Interface:
    config = network.config
    image = (BATCH, config.in_channels, "height", "width")
    inputs = [
        Port("x", image, "the noisy image, scaled as the network was trained on it"),
        Port("time", (BATCH,), "the network's time, of a solver's table", exact=True),
    ]
    if config.num_class_embeds is not None:
        meaning = f"class number, 0 to {config.num_class_embeds - 1}"
        inputs.append(Port("label", (BATCH,), meaning, torch.int64))
    output = Port(
        "output", (BATCH, config.out_channels, "height", "width"), "what the network was trained to predict"
    )
    step = 2 ** (len(config.block_out_channels) - 1)
    return Interface(tuple(inputs), (output,), {"height": step, "width": step})


def _make(network: UNet) -> nn.Module:
    if network.config.class_embed_type is not None:
        raise ConfigError(
            f"is {network.config.class_embed_type}; only networks that take class numbers, or none, are exported",
            argument="class_embed_type",
        )
    return _Denoiser(network).eval()


def _reference(network: UNet, *tensors: Tensor) -> Tensors:
    return (network(*tensors),)


def _sizes(network: UNet) -> dict[str, int]:
    height, width = network.config.sample_size
    return {"height": height, "width": width}


def _example(network: UNet, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    config = network.config
    height, width = {**_sizes(network), **sizes}.values()
    x = torch.randn(
        batch, config.in_channels, height, width, generator=generator, dtype=torch.float32, device="cpu"
    )
    fourier = config.time_embedding_type == "fourier"  # its time is sigma, by which it divides
    last = 50.0 if fourier else float((config.num_train_timesteps or 1000) - 1)
    time = 0.1 + (last - 0.1) * torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu")
    if config.num_class_embeds is None:
        return x, time
    return x, time, torch.randint(config.num_class_embeds, (batch,), generator=generator, device="cpu")


DENOISER = ExportForm(
    name="denoiser",
    about="the network's output for a noisy image, its time and its class",
    interface=_interface,
    make=_make,
    reference=_reference,
    example=_example,
    sizes=_sizes,
)
