"""The export forms of networks from images to images and of their discriminators.

Batch norms take the statistics of each image ("instance", an engine's default) or, in the forms of that name, those of
training. In the form with dropout masks come as noise, whose length goes by the image's size: an activation is kept
where it is above 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .form import BATCH, ExportForm, Interface, Port, Tensors


class _Translate(nn.Module):
    def __init__(self, network: nn.Module, norm_mode: str) -> None:
        super().__init__()
        self.network, self.norm_mode = network, norm_mode

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensors:
        return (self.network(x, None if noise is None else noise > 0, self.norm_mode),)


class _Dropout(nn.Module):
    """The noise is gathered by index: `torch.export` would ask its length to be that which goes with the image's."""

    def __init__(self, network: nn.Module, norm_mode: str) -> None:
        super().__init__()
        self.network, self.norm_mode = network, norm_mode

    def forward(self, x: Tensor, noise: Tensor) -> Tensors:
        network: Any = self.network
        own = torch.arange(network.dropout_count(*x.shape[2:]), device=noise.device)
        return (network(x, noise.index_select(1, own) > 0, self.norm_mode),)


class _Score(nn.Module):
    def __init__(self, network: nn.Module, norm_mode: str) -> None:
        super().__init__()
        self.network, self.norm_mode = network, norm_mode

    def forward(self, *images: Tensor) -> Tensors:
        logits = self.network(images[0] if len(images) == 2 else None, images[-1], self.norm_mode)
        return (logits.mean((1, 2, 3)),)


def _make(kind: type[nn.Module], norm_mode: str, network: Any) -> nn.Module:
    return kind(network, norm_mode).eval()


def _reference(norm_mode: str, network: Any, *tensors: Tensor) -> Tensors:
    x, *noise = tensors
    return (network(x, noise[0] > 0 if noise else None, norm_mode),)


def _reference_score(norm_mode: str, network: Any, *images: Tensor) -> Tensors:
    logits = network(images[0] if len(images) == 2 else None, images[-1], norm_mode)
    return (logits.mean((1, 2, 3)),)


def _translate_tensors(network: Any) -> Interface:
    config, multiple = network.config, network.multiple
    return Interface(
        (Port("x", (BATCH, config.in_channels, "height", "width"), "images in [-1, 1]"),),
        (Port("y", (BATCH, config.out_channels, "height", "width"), "images in [-1, 1]"),),
        {"height": multiple, "width": multiple},
    )


def _dropout_tensors(network: Any) -> Interface:
    """The noise of an image grows with its area: as long as its masked activations are many."""
    plain, multiple = _translate_tensors(network), network.multiple
    each = network.dropout_count(multiple, multiple)
    noise = Port(
        "noise",
        (BATCH, "activations"),
        "above 0 where an activation is kept: standard normal noise, or any other that is so half of the time, "
        f"{each} * height / {multiple} * width / {multiple} of them",
        exact=True,
    )
    return Interface((*plain.inputs, noise), plain.outputs, {**plain.divisors, "activations": each})


def _score_tensors(network: Any) -> Interface:
    config = network.config
    images = [
        Port(name, (BATCH, channels, "height", "width"), f"images in [-1, 1]: {meaning}")
        for name, channels, meaning in (
            ("x", config.in_channels, "what was translated"),
            ("y", config.out_channels, "what is judged"),
        )
        if channels
    ]
    score = Port("score", (BATCH,), "the mean logit of the image's patches, higher for a real one")
    return Interface(tuple(images), (score,))


def _side(network: Any) -> int:
    """A side of examples: the network's least one, or some more for one that takes images of any size."""
    return max(int(network.least), 32)


def _sizes(network: Any) -> dict[str, int]:
    """More than one multiple: exporters take a length of 1 for a constant."""
    side = max(_side(network), 2 * getattr(network, "multiple", 1))
    return {"height": side, "width": side}


def _images(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1


def _example(network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    height, width = {**_sizes(network), **sizes}.values()
    return (_images(generator, batch, network.config.in_channels, height, width),)


def _example_dropout(
    network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]
) -> Tensors:
    (x,) = _example(network, batch, generator, sizes)
    count = network.dropout_count(*x.shape[2:])
    return x, torch.randn(batch, count, generator=generator, dtype=torch.float32, device="cpu")


def _example_score(network: Any, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    height, width = {**_sizes(network), **sizes}.values()
    config = network.config
    channels = [n for n in (config.in_channels, config.out_channels) if n]
    return tuple(_images(generator, batch, n, height, width) for n in channels)


def _not_batch(network: Any) -> str:
    return (
        "" if network.config.norm == "batch" else f"norm is {network.config.norm}, which keeps no statistics"
    )


def _no_dropout(network: Any) -> str:
    return "" if network.dropout_count(network.multiple, network.multiple) else "it has no dropout"


def _form(name: str, about: str, norm_mode: str, score: bool = False, **more: Any) -> ExportForm:
    return ExportForm(
        name=name,
        about=about,
        reference=partial(_reference_score if score else _reference, norm_mode),
        **{
            "make": partial(_make, _Score if score else _Translate, norm_mode),
            "interface": _score_tensors if score else _translate_tensors,
            "example": _example_score if score else _example,
            "sizes": _sizes,
            **more,
        },
    )


GENERATOR = (
    _form("translate", "the translated image, by the statistics of each image", "instance"),
    _form(
        "translate_running",
        "the translated image, by the statistics of training",
        "running",
        missing=_not_batch,
    ),
    _form(
        "translate_dropout",
        "the translated image with dropout by given noise, whose length goes by the image's size",
        "instance",
        make=partial(_make, _Dropout, "instance"),
        interface=_dropout_tensors,
        example=_example_dropout,
        missing=_no_dropout,
    ),
)
DISCRIMINATOR = (
    _form("score", "how real an image looks, by the statistics of each image", "instance", True),
    _form(
        "score_running",
        "how real an image looks, by the statistics of training",
        "running",
        True,
        missing=_not_batch,
    ),
)
