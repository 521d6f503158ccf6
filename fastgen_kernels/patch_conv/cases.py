"""The patch convolution's cases, error bounds and costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import UNIT_ROUNDOFF, Arguments, Case, rounding_bound
from .layout import TAPS, input_precision, output_shape, pack_weight
from .reference import patch_conv


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    channels: int,
    layout: str = "last",
    packed: bool = True,
    bias: bool = True,
    **options: Any,
) -> Arguments:
    """Random arguments for x of `shape` [B, Cin, H, W] and `channels` outputs.

    layout of x: "last" (channels-last), "first" (contiguous), "padded" (channels-last, pixels 8 * k elements apart),
    "channels", "rows" (slices of a larger channels-last tensor), "columns" (of a contiguous one).
    """
    batch, inputs, height, width = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float32, device="cpu").to(
            device=device, dtype=dtype
        )

    def last(*size: int) -> Tensor:
        b, c, h, w = size
        return draw(b, h, w, c).permute(0, 3, 1, 2)

    x = {
        "last": lambda: last(*shape),
        "first": lambda: draw(*shape),
        "padded": lambda: last(batch, (inputs + 7) // 8 * 8, height, width)[:, :inputs],
        "channels": lambda: last(batch, inputs + 8, height, width)[:, 8:],
        "rows": lambda: last(batch + 1, inputs, height + 2, width)[1:, :, 1:-1],
        "columns": lambda: draw(batch, inputs, height, width + 3)[..., 2:-1],
    }[layout]()
    weight = draw(channels, inputs, 4, 4) * (inputs * TAPS) ** -0.5
    named = {"x": x, "weight": pack_weight(weight) if packed else weight}
    return named | {"bias": draw(channels) if bias else None} | options


def make_case(
    name: str,
    reason: str,
    shape: tuple[int, int, int, int],
    channels: int,
    production: bool = False,
    **options: Any,
) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, channels, **options
    )
    return Case(name, make, reason, production=production)


_SMALL = (
    make_case("tiny", "2x2 pixels, one patch: most taps in the padding", (1, 1, 2, 2), 2, layout="first"),
    make_case("pair", "first layer: two images of 3 channels", (2, 6, 6, 10), 16, layout="first"),
    make_case(
        "odd", "odd height and width, which descriptors cannot hold; ragged Cout", (2, 16, 7, 5), 12, stride=2
    ),
    make_case(
        "deep",
        "64 channels at stride 2: tensor descriptors, on the float32 path too",
        (2, 64, 14, 16),
        16,
    ),
    make_case("small", "images that would leave descriptors' blocks empty", (2, 64, 6, 10), 16),
    make_case(
        "planar",
        "all contiguous: the output too, which no descriptor stores",
        (2, 64, 16, 14),
        16,
        layout="first",
        packed=False,
    ),
    make_case(
        "planar32",
        "so in float32, whose steps hold 32 channels",
        (1, 32, 14, 16),
        8,
        layout="first",
        packed=False,
    ),
    make_case("stride1", "the fourth layer: more patches than a tile holds in a row", (1, 64, 7, 23), 72, stride=1),
    make_case("logits", "the last layer: one channel, no activation", (2, 32, 5, 7), 1, stride=1, negative_slope=None),
    make_case("one_of_three", "one channel from three, stride 2, activated", (1, 3, 6, 8), 1, layout="last"),
    make_case("grey", "one channel in, packed to eight", (2, 1, 8, 6), 8),
    make_case("three", "a channels-last image, whose 3 channels no 16 bytes hold", (1, 3, 6, 6), 9),
    make_case("padded", "6 channels of 8, with NaN between them; no copy", (2, 6, 6, 6), 8, layout="padded"),
    make_case("plain", "all contiguous, no bias", (2, 8, 6, 6), 5, layout="first", packed=False, bias=False),
    make_case("channels", "half of a tensor's channels", (2, 64, 4, 6), 8, layout="channels"),
    make_case("rows", "a window of a batch, in descriptors", (2, 64, 14, 14), 8, layout="rows"),
    make_case("columns", "columns of a contiguous image, nothing aligned", (1, 5, 6, 6), 8, layout="columns"),
    make_case("ragged", "24 channels: several taps in a step, of which none is whole", (1, 24, 6, 6), 8, stride=1),
)  # fmt: skip

# The 70x70 discriminator of 256x256 pairs, layer by layer: batch 1 for latency, batch 64 for throughput.
_LAYERS: dict[str, tuple[tuple[int, int, int], int, Arguments]] = {
    "first": ((6, 256, 256), 64, {"layout": "first"}),
    "second": ((64, 128, 128), 128, {}),
    "third": ((128, 64, 64), 256, {}),
    "fourth": ((256, 32, 32), 512, {"stride": 1}),
    "fifth": ((512, 31, 31), 1, {"stride": 1, "negative_slope": None}),
}
CASES = _SMALL + tuple(
    make_case(f"{name}{batch}", reason, (batch, *shape), channels, production=True, **options)
    for batch, reason in ((1, "latency: one pair"), (64, "throughput"))
    for name, (shape, channels, options) in _LAYERS.items()
)


def exact(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 2,
    negative_slope: float | None = 0.2,
) -> tuple[Tensor, ...]:
    """The layer in float64 from the arguments as they were rounded."""
    return (patch_conv(x.double(), weight.double(), double(bias), stride, negative_slope),)


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def magnitude(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The convolution of absolute values, in float64."""
    bias = None if bias is None else bias.double().abs()
    return patch_conv(x.double().abs(), weight.double().abs(), bias, stride, None)


def accumulated(x: Tensor, terms: int | None = None) -> float:
    """Roundings to float32 of the products' sum, in units of 2^-24 of their magnitude.

    terms: products in a sum; those of a 4x4 convolution of x by default.
    """
    # Each of n additions, one after the other, rounds a partial sum of k terms of random signs, about sqrt(k) of
    # them large: together at most n / sqrt(2) terms' roundings (standard deviation), of a magnitude of 0.64 n for
    # products of normals, 1.1 in all. Six of that, and the rounding of the bias: 8, for any n and any order.
    bound = 8.0
    if x.is_cuda and x.element_size() == 2:
        # Tensor cores add at least 8 products to the sum so far and cut the result off: towards zero, by at most 2^-23
        # of it. Errors of one sign add up as the n / 8 partial sums do. Those are a random walk in steps of sqrt(8),
        # whose sum has a standard deviation of sqrt(8 / 3) * (n / 8)^1.5 = 0.072 n^1.5: six of that, times 2^-23, of a
        # magnitude of 0.64 n. What the products lose when they are aligned has their random signs: the 8 holds it.
        bound += 1.36 * math.sqrt(x.shape[1] * TAPS if terms is None else terms)
    elif x.is_cuda and input_precision(x.dtype) == "tf32":
        # TF32 keeps 10 bits of each factor's fraction, and tensor cores cut the others off: twice 2^-10 = 2^-9, beside
        # which nothing else counts. On CPU, and so in the interpreter, products are exact.
        bound += 2.0**15
    return bound


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor, ...]:
    """Bound of y: one rounding, and the products' sum in float32."""
    x, weight, bias = (named[name] for name in ("x", "weight", "bias"))
    (y,) = outputs
    slope = named.get("negative_slope", 0.2)
    # The activation scales errors too, and the sum near zero may change its sign.
    scale = max(1.0, slope or 0.0)
    size = magnitude(x, weight, bias, named.get("stride", 2)) * scale
    bound = rounding_bound(y, size, x.dtype, accumulated(x))
    if slope is not None:
        # PyTorch rounds the convolution before it scales, and rounds again; the kernel does not.
        bound = bound + torch.where(y < 0.0, UNIT_ROUNDOFF[x.dtype] * y.abs(), 0.0)
    return (bound,)


def total_bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def bytes_moved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 2,
    negative_slope: float | None = 0.2,
) -> int:
    """Least traffic: every input read once, y written once."""
    outputs = math.prod(output_shape(x, weight, stride))
    return total_bytes(x, weight, bias) + outputs * x.element_size()


def flops(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 2,
    negative_slope: float | None = 0.2,
) -> int:
    """Multiplications and additions, those in the padding too; bias and activation one each."""
    outputs = math.prod(output_shape(x, weight, stride))
    return outputs * (2 * x.shape[1] * TAPS - 1 + (bias is not None) + (negative_slope is not None))
