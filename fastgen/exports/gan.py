"""The export forms of GANs: images of latents, and what a discriminator makes of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.gan.spectral import without_parametrizations
from .form import BATCH, ExportForm, Interface, Port, Tensors


class _Generator(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.order = network, tuple(port.name for port in _inputs(network.config))

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        named = dict(zip(self.order, tensors, strict=True))
        return (self.network(named["z"], named.get("labels"), named.get("truncation")),)


class _Score(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *labels: Tensor) -> tuple[Tensor]:
        return (self.network(x, *labels),)


def label_ports(config: Any) -> list[Port]:
    """The labels of networks that take them."""
    if config.num_classes is None:
        return []
    return [Port("labels", (BATCH,), f"class number, 0 to {config.num_classes - 1}", torch.int64)]


def _inputs(config: Any) -> list[Port]:
    ports = [
        Port("z", (BATCH, config.latent), "standard normal, or truncated by the caller"),
        *label_ports(config),
    ]
    if getattr(config, "levels", 1) > 1:
        meaning = "whose standing statistics are taken, 0 to 1"
        # float32 would move it off the truncations that statistics are of.
        ports.append(Port("truncation", (BATCH,), meaning, torch.float64, exact=True))
    return ports


def _generator_interface(network: Any) -> Interface:
    image = Port("x", (BATCH, *network.config.shape), "images in [-1, 1]")
    return Interface(tuple(_inputs(network.config)), (image,))


def _score_interface(network: Any) -> Interface:
    image = Port("x", (BATCH, *network.config.shape), "images in [-1, 1]")
    score = Port("score", (BATCH,), "a logit, higher for what is taken for real")
    return Interface((image, *label_ports(network.config)), (score,))


def _generate(network: Any, *tensors: Tensor) -> Tensors:
    result: Tensors = _Generator(network)(*tensors)
    return result


def _judge(network: Any, *tensors: Tensor) -> Tensors:
    result: Tensors = _Score(network)(*tensors)
    return result


def label_example(config: Any, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Random ones, of networks that take them."""
    if config.num_classes is None:
        return []
    return [torch.randint(config.num_classes, (batch,), generator=generator, device="cpu")]


def _generator_example(
    network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]
) -> Tensors:
    config = network.config
    z = torch.randn(batch, config.latent, generator=generator, dtype=torch.float32, device="cpu")
    tensors = [z, *label_example(config, batch, generator)]
    if getattr(config, "levels", 1) > 1:
        tensors.append(torch.rand(batch, generator=generator, dtype=torch.float64, device="cpu"))
    return tuple(tensors)


def _score_example(network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    config = network.config
    x = torch.rand(batch, *config.shape, generator=generator, dtype=torch.float32, device="cpu")
    return (2 * x - 1, *label_example(config, batch, generator))


GAN_GENERATOR = ExportForm(
    name="generator",
    about="images of latents, of a label and a truncation where the network knows them",
    interface=_generator_interface,
    make=lambda network: _Generator(without_parametrizations(network)).eval(),
    reference=_generate,
    example=_generator_example,
)
GAN_DISCRIMINATOR = ExportForm(
    name="score",
    about="the logit of an image, of its label where the network knows it",
    interface=_score_interface,
    make=lambda network: _Score(without_parametrizations(network)).eval(),
    reference=_judge,
    example=_score_example,
)
