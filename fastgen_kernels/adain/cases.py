"""Adaptive instance normalisation's cases, error bounds and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import Arguments, Case, rounding_bound
from .reference import adain, content, deviations, per_plane

Shape = tuple[int, int, int, int]


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: Shape,
    style: str | tuple[int, int, int] | None = "affine",
    channels_last: bool = False,
    sliced: bool = False,
    noise: int = 0,
    bias: bool = False,
    mean: float = 0.5,
    beside: torch.dtype | None = None,
    **options: Any,
) -> Arguments:
    """Random arguments of `adain` for a content of `shape` [B, C, H, W] around `mean`.

    style: "affine" (scale and shift, as halves of one linear layer's output), "statistics" (mean and std), the
    shape [B or 1, H', W'] of a feature map, or None. sliced: x lies between other samples and channels. noise: its
    number of samples. beside: the type of all tensors but x.
    """
    batch, channels, height, width = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parameters = dtype if beside is None or dtype == torch.float64 else beside

    def draw(*size: int, kind: torch.dtype | None = None) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float32, device="cpu").to(
            device, kind or parameters
        )

    full = draw(batch + 2 * sliced, channels + 16 * sliced, height, width, kind=torch.float32) * 2.0 + mean
    full = full.to(dtype).contiguous(memory_format=layout)
    made: Arguments = {"x": full[1:-1, 8:-8] if sliced else full}
    if style == "affine":
        made["scale"], made["shift"] = (draw(batch, 2 * channels) + 0.5).chunk(2, 1)
    elif style == "statistics":
        made["mean"], made["std"] = draw(batch, channels), draw(batch, channels).abs()
    elif isinstance(style, tuple):
        feature_map = draw(style[0], channels, *style[1:]) * 3.0 + 1.0
        made["style"] = feature_map.contiguous(memory_format=layout)
    if bias:
        made["bias"] = draw(channels)
    if noise:
        made["noise"], made["noise_weight"] = draw(noise, 1, height, width), draw(channels)
    return made | options


def _case(name: str, reason: str, shape: Shape, production: bool = False, **options: Any) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, **options
    )
    return Case(name, make, reason, production=production)


STYLEGAN: Arguments = {"noise": 1, "bias": True, "slope_before": 0.2, "eps": 1e-8}

CASES = (
    _case("affine", "scale and shift; planes of 35 pixels divide by nothing", (2, 3, 5, 7)),
    _case(
        "style", "a feature map's statistics, another size, blended", (2, 3, 6, 5), style=(2, 4, 7), alpha=0.3
    ),
    _case("stylegan", "noise, bias and activation before the statistics", (2, 5, 4, 4), **STYLEGAN),
    _case("patchgan", "instance norm, then LeakyReLU", (1, 3, 9, 7), style=None, slope_after=0.2),
    _case("relu", "nothing but the norm, then ReLU", (2, 3, 6, 7), style=None, slope_after=0.0, mean=40.0),
    _case("pixel", "planes of one pixel: the variance is 0", (2, 5, 1, 1)),
    _case("pixel_last", "the same in a channels-last slice", (2, 3, 1, 1), channels_last=True, sliced=True),
    _case("one", "one element; unbiased variance of one pixel", (1, 1, 1, 1), correction=1),
    _case("column", "planes one pixel wide", (2, 3, 11, 1), style="statistics"),
    _case("sliced", "x between other samples and channels", (2, 3, 6, 6), sliced=True, noise=2),
    _case("last", "channels-last, ragged channels and pixels", (2, 35, 5, 3), channels_last=True, **STYLEGAN),
    _case(
        "last_sliced",
        "a channels-last slice",
        (2, 20, 4, 6),
        channels_last=True,
        sliced=True,
        style=(1, 3, 3),
    ),
    _case(
        "last_single", "one channel of a channels-last tensor", (2, 1, 5, 6), channels_last=True, sliced=True
    ),
    _case("unbiased", "pytorch-AdaIN's variance", (1, 2, 3, 3), style=(1, 2, 2), correction=1),
    _case("content", "alpha 0 gives the content back", (1, 3, 5, 5), alpha=0.0, mean=3.0),
    _case(
        "float32_style", "parameters kept in float32", (2, 4, 8, 8), beside=torch.float32, noise=2, bias=True
    ),
    _case("large_mean", "a mean of 1000 deviations", (1, 2, 13, 17), mean=2000.0),
    _case(
        "split", "planes in two spans, the second ragged, noise for each sample", (2, 1, 129, 140), noise=2
    ),
    _case(
        "split_last",
        "channels-last planes in spans of a tile",
        (1, 3, 41, 43),
        channels_last=True,
        **STYLEGAN,
    ),
    _case("split_style", "content on chip, style in spans", (1, 2, 6, 6), style=(1, 131, 129)),
    _case("stylegan4", "latency: StyleGAN's first layer", (1, 512, 4, 4), True, **STYLEGAN),
    _case("stylegan8", "latency: its second, planes of 8x8 on chip", (1, 512, 8, 8), True, **STYLEGAN),
    _case("stylegan16", "latency: planes of 16x16 on chip", (1, 512, 16, 16), True, **STYLEGAN),
    _case("stylegan32", "latency: planes of 32x32 on chip", (1, 512, 32, 32), True, **STYLEGAN),
    _case("stylegan128", "latency: the largest planes on chip", (1, 128, 128, 128), True, **STYLEGAN),
    _case("stylegan4_last", "latency, channels-last", (1, 512, 4, 4), True, channels_last=True, **STYLEGAN),
    _case("stylegan8_last", "latency, channels-last", (1, 512, 8, 8), True, channels_last=True, **STYLEGAN),
    _case("street32", "latency: features of a 512x1024 image", (1, 512, 32, 64), True),
    _case("street64", "latency: planes of 8192 pixels on chip", (1, 256, 64, 128), True),
    _case("street16_last", "latency, channels-last, 512 pixels", (1, 512, 16, 32), True, channels_last=True),
    _case("stylegan64", "StyleGAN's middle", (4, 256, 64, 64), True, **STYLEGAN),
    _case(
        "stylegan1024", "StyleGAN's last layer: 16 planes of a million", (1, 16, 1024, 1024), True, **STYLEGAN
    ),
    _case(
        "stylegan1024_last",
        "the same channels-last: 16 channels are all that a pixel has",
        (1, 16, 1024, 1024),
        True,
        channels_last=True,
        **STYLEGAN,
    ),
    _case(
        "stylegan256_last",
        "bandwidth, channels-last: 64 spans a plane",
        (8, 64, 256, 256),
        True,
        channels_last=True,
        **STYLEGAN,
    ),
    _case(
        "vgg1",
        "style transfer of one 512-pixel image",
        (1, 512, 64, 64),
        True,
        style=(1, 64, 64),
        alpha=0.7,
    ),
    _case(
        "vgg1_last",
        "the same channels-last",
        (1, 512, 64, 64),
        True,
        style=(1, 64, 64),
        channels_last=True,
    ),
    _case(
        "vgg1_large",
        "a 1024-pixel image's: both maps' planes in spans, one launch for their statistics",
        (1, 256, 256, 256),
        True,
        style=(1, 160, 160),
    ),
    _case("vgg16", "bandwidth: planes on chip", (16, 512, 64, 64), True),
    _case(
        "vgg16_last",
        "bandwidth, channels-last: planes read twice",
        (16, 512, 64, 64),
        True,
        channels_last=True,
    ),
    _case(
        "cyclegan1",
        "the generator's first norm, then ReLU",
        (1, 64, 256, 256),
        True,
        style=None,
        slope_after=0.0,
    ),
    _case(
        "patchgan64_last",
        "the discriminator's last norm, channels-last: planes on chip",
        (64, 512, 31, 31),
        True,
        style=None,
        slope_after=0.2,
        channels_last=True,
    ),
    _case(
        "stylegan16_last",
        "bandwidth: channels-last planes on chip",
        (256, 512, 16, 16),
        True,
        channels_last=True,
    ),
)


def exact(x: Tensor, *others: Any, **named: Any) -> tuple[Tensor]:
    """The operation in float64 from the arguments as they were rounded."""

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) else value

    return (adain(double(x), *map(double, others), **{name: double(value) for name, value in named.items()}),)


def _spread(magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For a map of absolute values: what its deviations, their mean and their standard deviation err by, in roundings.

    A deviation v - mean errs by |v| and by the mean's error, which is at most that of a sum of |v|. A standard
    deviation is a root mean square of deviations, and errs by that of their errors.
    """
    mean = magnitude.mean((2, 3), keepdim=True)
    deviation = magnitude + mean
    return deviation, mean, deviation.square().mean((2, 3), keepdim=True).sqrt()


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor]:
    """The bound of y: the operation on absolute values, times the roundings on the way."""
    x = named["x"]
    get = named.get
    alpha, eps, correction = get("alpha", 1.0), get("eps", 1e-5), get("correction", 0)

    def double(name: str) -> Tensor | None:
        return None if get(name) is None else named[name].double()

    bias, noise, noise_weight = (double(name) for name in ("bias", "noise", "noise_weight"))
    v = content(x.double(), bias, noise, noise_weight, get("slope_before", 1.0))
    d, _, deviation = deviations(v, eps, correction)
    # LeakyReLU passes an error on at most times max(1, slope).
    before, after = (max(1.0, abs(get(name, 1.0))) for name in ("slope_before", "slope_after"))
    bias, noise, noise_weight = (None if t is None else t.abs() for t in (bias, noise, noise_weight))
    magnitude = before * content(x.double().abs(), bias, noise, noise_weight, 1.0)
    d_error, _, deviation_error = _spread(magnitude)

    scale, shift = double("scale"), double("shift")
    gain = torch.ones_like(deviation) if scale is None else per_plane(scale, torch.float64).abs()
    offset = torch.zeros_like(deviation) if shift is None else per_plane(shift, torch.float64).abs()
    if get("std") is not None:
        gain, offset = (per_plane(named[name], torch.float64).abs() for name in ("std", "mean"))
    if get("style") is not None:
        style = named["style"].double()
        _, offset, style_error = _spread(style.abs())
        gain = deviations(style, eps, correction)[2] + style_error
    # d / deviation errs by d's error and by the deviation's, relative to it.
    normalised = (d_error + d.abs() * (1.0 + deviation_error / deviation)) / deviation
    # Written as d + mean, the content that is kept errs as a deviation does.
    total = alpha * (normalised * gain + offset) + (1.0 - alpha) * d_error
    return (rounding_bound(outputs[0], after * total, x.dtype),)


def bytes_moved(x: Tensor, *others: Any, **named: Any) -> int:
    """Least traffic: x in, y out, everything else in, once."""
    tensors = [value for value in (*others, *named.values()) if isinstance(value, Tensor)]
    return 2 * x.numel() * x.element_size() + sum(t.numel() * t.element_size() for t in tensors)


def flops(x: Tensor, *others: Any, **named: Any) -> int:
    """Additions, multiplications and comparisons: statistics 4 an element, scale and shift 2."""
    given = {name for name, value in named.items() if value is not None}
    per_element = 6 + ("bias" in given) + 2 * ("noise" in given)
    per_element += 2 * sum(named.get(name, 1.0) != 1.0 for name in ("slope_before", "slope_after"))
    style = named.get("style")
    return per_element * x.numel() + (0 if style is None else 4 * style.numel())
