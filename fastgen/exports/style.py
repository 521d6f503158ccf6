"""The export forms of networks for style transfer: a content in a style, at once or by the style's code; that code."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..images import PICTURES
from ..models.style.network import Signals, StyleNetwork
from .form import BATCH, ExportForm, Interface, Port, Tensors

IMAGE = "RGB in [-1, 1]"
STRENGTH = "strength of the style, from 0 to 1"
SIZE = 64  # pixels of a side that a form is tried on, rounded up to what the network takes


class _Form(nn.Module):
    def __init__(self, network: StyleNetwork) -> None:
        super().__init__()
        self.network = network

    def code(self, style: Tensor) -> Tensor:
        return self.network.encode_style((style + 1) / 2)

    def blended(self, content: Tensor, code: Tensor, alpha: Tensor) -> Tensor:
        """As the engine's verb "blend"."""
        network, picture = self.network, (content + 1) / 2
        features = network.features(picture)
        own = network.code(features if network.one_encoder else network.style_features(picture))
        mixed = own + alpha[:, None] * (code - own)
        made = network.decode(network.modulate(features, Signals(mixed[:, None])))
        return (2 * made - 1).clamp(*PICTURES)


class _Stylize(_Form):
    def forward(self, content: Tensor, style: Tensor, alpha: Tensor) -> Tensors:
        return (self.blended(content, self.code(style), alpha),)


class _ApplyStyle(_Form):
    def forward(self, content: Tensor, code: Tensor, alpha: Tensor) -> Tensors:
        return (self.blended(content, code, alpha),)


class _EncodeStyle(_Form):
    def forward(self, style: Tensor) -> Tensors:
        return (self.code(style),)


CONTENT = Port("content", (BATCH, 3, "height", "width"), IMAGE)
STYLE = Port("style", (BATCH, 3, "style_height", "style_width"), IMAGE)
ALPHA = Port("alpha", (BATCH,), STRENGTH)


def _result(network: StyleNetwork) -> Port:
    # A crop would be left out by the exporter, which takes declared multiples for granted.
    cut = f"a side that is no multiple of {network.stride} comes rounded up to one: cut off the right and the bottom"
    return Port("x", (BATCH, 3, "height", "width"), f"{IMAGE}; {cut}")


def _code(network: StyleNetwork) -> Port:
    return Port("code", (BATCH, network.code_size), "a style, of which means may be taken")


def _interface(inputs: tuple[Port, ...], outputs: tuple[Port, ...], network: StyleNetwork) -> Interface:
    axes = {axis for port in inputs for axis in port.axes if isinstance(axis, str)} - {BATCH}
    return Interface(inputs, outputs, dict.fromkeys(axes, network.stride))


def _of_stylize(network: StyleNetwork) -> Interface:
    return _interface((CONTENT, STYLE, ALPHA), (_result(network),), network)


def _of_apply(network: StyleNetwork) -> Interface:
    return _interface((CONTENT, _code(network), ALPHA), (_result(network),), network)


def _of_encode(network: StyleNetwork) -> Interface:
    return _interface((STYLE,), (_code(network),), network)


def _side(network: StyleNetwork) -> int:
    return -(-max(SIZE, network.minimum) // network.stride) * network.stride


def _sizes(network: StyleNetwork) -> dict[str, int]:
    return dict.fromkeys(("height", "width"), _side(network))


def _style_sizes(network: StyleNetwork) -> dict[str, int]:
    return dict.fromkeys(("style_height", "style_width"), _side(network))


def _both_sizes(network: StyleNetwork) -> dict[str, int]:
    return _sizes(network) | _style_sizes(network)


def _pictures(batch: int, generator: torch.Generator, height: int, width: int) -> Tensor:
    """Random colours that change over some pixels, as those of photographs do."""
    drawn = torch.rand(
        batch, 3, -(-height // 8), -(-width // 8), generator=generator, dtype=torch.float32, device="cpu"
    )
    return F.interpolate(drawn, (height, width), mode="bilinear") * 2 - 1


def _example_style(
    network: StyleNetwork, batch: int, generator: torch.Generator, sizes: Mapping[str, int]
) -> Tensors:
    size = {**_style_sizes(network), **sizes}
    return (_pictures(batch, generator, size["style_height"], size["style_width"]),)


def _example(
    network: StyleNetwork, batch: int, generator: torch.Generator, sizes: Mapping[str, int]
) -> Tensors:
    size = {**_sizes(network), **sizes}
    content = _pictures(batch, generator, size["height"], size["width"])
    alpha = torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu")
    return content, *_example_style(network, batch, generator, sizes), alpha


def _example_code(
    network: StyleNetwork, batch: int, generator: torch.Generator, sizes: Mapping[str, int]
) -> Tensors:
    content, style, alpha = _example(network, batch, generator, sizes)
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        (code,) = _EncodeStyle(network)(style.to(dtype))
    return content, code.float(), alpha


# Variances are sums over all pixels of a picture, which pass what float16 holds: there is no fp16.
STYLE_FORMS = (
    ExportForm(
        name="stylize",
        about="a content in a style, of some strength",
        interface=_of_stylize,
        make=lambda network: _Stylize(network).eval(),
        reference=lambda network, *tensors: _Stylize(network)(*tensors),
        example=_example,
        sizes=_both_sizes,
        precisions=("fp32",),
    ),
    ExportForm(
        name="encode_style",
        about="a style's code",
        interface=_of_encode,
        make=lambda network: _EncodeStyle(network).eval(),
        reference=lambda network, *tensors: _EncodeStyle(network)(*tensors),
        example=_example_style,
        sizes=_style_sizes,
        precisions=("fp32",),
    ),
    ExportForm(
        name="apply_style",
        about="a content in a style whose code is known, of some strength",
        interface=_of_apply,
        make=lambda network: _ApplyStyle(network).eval(),
        reference=lambda network, *tensors: _ApplyStyle(network)(*tensors),
        example=_example_code,
        sizes=_sizes,
        precisions=("fp32",),
    ),
)
