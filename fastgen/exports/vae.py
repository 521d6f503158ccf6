"""The export forms of variational autoencoders: images, or rows, to the moments of their latents; latents to them.

Tensors are in the engine's units. The posterior of a group of latents is the one given the means of those above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.vae.vae import VAE
from .form import BATCH, ExportForm, Interface, Port, Tensors


class _Encode(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, *label: Tensor) -> Tensors:
        return _reference_encode(self.vae, x, *label)


class _Decode(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, *tensors: Tensor) -> Tensors:
        return _reference_decode(self.vae, *tensors)


def _reference_encode(vae: VAE, x: Tensor, *label: Tensor) -> Tensors:
    return tuple(value for normal in vae.encode(vae.inward(x), *label) for value in normal)


def _reference_decode(vae: VAE, *tensors: Tensor) -> Tensors:
    output = vae.decode(tensors[: vae.groups], *tensors[vae.groups :])
    return (vae.outward(vae.mean(output)),)


def _axes(vae: VAE, shape: tuple[int, ...], names: tuple[str, str]) -> tuple[str | int, ...]:
    """Of images of any size the words for their sides."""
    return (BATCH, shape[0], *names) if vae.multiple else (BATCH, *shape)


def _data(vae: VAE, meaning: str) -> Port:
    units = "images in [-1, 1]" if len(vae.data_shape) == 3 else "rows in the data's own units"
    return Port("x", _axes(vae, vae.data_shape, ("height", "width")), f"{units}{meaning}")


def _latents(vae: VAE, name: str, meaning: str) -> list[Port]:
    return [
        Port(f"{name}_{i}", _axes(vae, shape, ("latent_height", "latent_width")), meaning)
        for i, shape in enumerate(vae.latent_shapes)
    ]


def _condition(vae: VAE) -> list[Port]:
    if vae.classes is None:
        return []
    return [Port("labels", (BATCH,), f"class numbers, 0 to {vae.classes - 1}", torch.int64)]


def _encode_tensors(vae: VAE) -> Interface:
    means = _latents(vae, "mean", "mean of q(z | x)")
    log_vars = _latents(vae, "log_var", "log-variance of q(z | x)")
    moments = [port for pair in zip(means, log_vars, strict=True) for port in pair]
    divisors = {"height": vae.multiple, "width": vae.multiple} if vae.multiple else {}
    return Interface((_data(vae, ""), *_condition(vae)), tuple(moments), divisors)


def _decode_tensors(vae: VAE) -> Interface:
    latents = _latents(vae, "latents", "latents of a group")
    return Interface((*latents, *_condition(vae)), (_data(vae, ": the mean of p(x | z), not clipped"),))


def _encode_sizes(vae: VAE) -> dict[str, int]:
    return {"height": vae.data_shape[1], "width": vae.data_shape[2]} if vae.multiple else {}


def _decode_sizes(vae: VAE) -> dict[str, int]:
    if not vae.multiple:
        return {}
    return {"latent_height": vae.latent_shapes[0][1], "latent_width": vae.latent_shapes[0][2]}


def _labels(vae: VAE, batch: int, generator: torch.Generator) -> Tensors:
    if vae.classes is None:
        return ()
    return (torch.randint(vae.classes, (batch,), generator=generator, device="cpu"),)


def _example_encode(vae: VAE, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    shape = (vae.data_shape[0], *{**_encode_sizes(vae), **sizes}.values()) if vae.multiple else vae.data_shape
    x = torch.rand(batch, *shape, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1
    x = x if len(shape) == 3 else vae.outward(x)
    return (x, *_labels(vae, batch, generator))


def _example_decode(vae: VAE, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    shapes: list[Any] = list(vae.latent_shapes)
    if vae.multiple:
        shapes = [(vae.latent_shapes[0][0], *{**_decode_sizes(vae), **sizes}.values())]
    latents = [
        torch.randn(batch, *shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes
    ]
    return (*latents, *_labels(vae, batch, generator))


VAE_FORMS = (
    ExportForm(
        name="encode",
        about="means and log-variances of the latents of x",
        interface=_encode_tensors,
        make=lambda vae: _Encode(vae).eval(),
        reference=_reference_encode,
        example=_example_encode,
        sizes=_encode_sizes,
    ),
    ExportForm(
        name="decode",
        about="the mean of x given its latents",
        interface=_decode_tensors,
        make=lambda vae: _Decode(vae).eval(),
        reference=_reference_decode,
        example=_example_decode,
        sizes=_decode_sizes,
    ),
)
