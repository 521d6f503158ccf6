"""The export forms of style-based generators: styles of latents, images of styles, with the network's noise or any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .form import BATCH, ExportForm, Interface, Port, Tensors
from .gan import label_example, label_ports


class _Mapping(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, *others: Tensor) -> Tensors:
        *labels, psi, cutoff = others
        w = self.network.mapping(z, *labels)
        return (self.network.truncate(w, psi, cutoff),)


class _Synthesis(nn.Module):
    """noise: of every layer; none: the network's own."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ws: Tensor, *noise: Tensor) -> Tensors:
        return (self.network.synthesis(ws, list(noise or self.network.noises)),)


def _styles(network: Any) -> Port:
    return Port(
        "ws", (BATCH, network.num_ws, network.config.w_dim), "a style for each layer, the coarsest first"
    )


def _mapping_interface(network: Any) -> Interface:
    inputs = (
        Port("z", (BATCH, network.config.latent), "standard normal"),
        *label_ports(network.config),
        Port("truncation_psi", (BATCH,), "1: no truncation, 0: the mean style"),
        Port(
            "truncation_cutoff",
            (BATCH,),
            f"how many styles are truncated, 0 to {network.num_ws}",
            torch.int64,
        ),
    )
    return Interface(inputs, (_styles(network),))


def _synthesis_interface(network: Any) -> Interface:
    image = Port("x", (BATCH, *network.config.shape), "images, in about [-1, 1]")
    return Interface((_styles(network),), (image,))


def _noise_interface(network: Any) -> Interface:
    plain = _synthesis_interface(network)
    noise = [
        Port(f"noise_{i}", (BATCH, 1, *shape), "standard normal, or zeros for none")
        for i, shape in enumerate(network.noise_shapes)
    ]
    return Interface((*plain.inputs, *noise), plain.outputs)


def _map(network: Any, *tensors: Tensor) -> Tensors:
    found: Tensors = _Mapping(network)(*tensors)
    return found


def _synthesise(network: Any, *tensors: Tensor) -> Tensors:
    found: Tensors = _Synthesis(network)(*tensors)
    return found


def _mapping_example(
    network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]
) -> Tensors:
    z = torch.randn(batch, network.config.latent, generator=generator, dtype=torch.float32, device="cpu")
    psi = torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu")
    cutoff = torch.randint(network.num_ws + 1, (batch,), generator=generator, device="cpu")
    return (z, *label_example(network.config, batch, generator), psi, cutoff)


def _synthesis_example(
    network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]
) -> Tensors:
    """The styles of random latents: synthesis has no bounds for others."""
    with torch.no_grad():
        return _map(network, *_mapping_example(network, batch, generator, sizes))


def _noise_example(network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    noise = (
        torch.randn(batch, 1, *shape, generator=generator, dtype=torch.float32, device="cpu")
        for shape in network.noise_shapes
    )
    return (*_synthesis_example(network, batch, generator, sizes), *noise)


STYLEGAN_FORMS = (
    ExportForm(
        name="mapping",
        about="the styles of latents, of a label where the network knows them, truncated",
        interface=_mapping_interface,
        make=lambda network: _Mapping(network).eval(),
        reference=_map,
        example=_mapping_example,
    ),
    ExportForm(
        name="synthesis",
        about="images of styles, with the network's own noise",
        interface=_synthesis_interface,
        make=lambda network: _Synthesis(network).eval(),
        reference=_synthesise,
        example=_synthesis_example,
    ),
    ExportForm(
        name="synthesis_noise",
        about="images of styles and of noise for each layer",
        interface=_noise_interface,
        make=lambda network: _Synthesis(network).eval(),
        reference=_synthesise,
        example=_noise_example,
    ),
)
