"""Group normalisation's cases, error bounds and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import Arguments, Case, rounding_bound
from .reference import LOW_PRECISION


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    num_groups: int,
    skip: int = 0,
    channels_last: bool = False,
    affine: bool = True,
    add: bool = False,
    scale: bool = False,
    shift: bool = False,
    act: bool = True,
    sliced: int = 0,
    rows: int = 0,
    wide: bool = False,
    mean: float = 0.0,
    deviation: float = 1.0,
) -> Arguments:
    """Random arguments of `group_norm` for x of `shape` [B, C1, H, W] and a skip of `skip` channels.

    sliced: x and skip are channels [sliced:-sliced] of wider tensors. rows: add, scale and shift are the last
    columns of tensors that are so much wider. wide: all vectors are float32 beside 16-bit images. mean, deviation:
    of x's and skip's elements.
    """
    batch, own, height, width = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def image(channels: int) -> Tensor:
        # A channel's own offset, as convolutions with a bias leave it: groups' means are unlike their channels'.
        value = torch.randn(
            batch,
            channels + 2 * sliced,
            height,
            width,
            generator=generator,
            dtype=torch.float32,
            device="cpu",
        )
        value += torch.randn(
            channels + 2 * sliced, 1, 1, generator=generator, dtype=torch.float32, device="cpu"
        )
        value = (value * deviation + mean).to(device, dtype).contiguous(memory_format=layout)
        return value[:, sliced : sliced + channels]

    def vectors(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float32, device="cpu").to(
            device, torch.float32 if wide and dtype in LOW_PRECISION else dtype
        )

    channels = own + skip
    made: Arguments = {"x": image(own), "num_groups": num_groups, "eps": 1e-5, "act": act}
    if skip:
        made["skip"] = image(skip)
    if affine:
        made["weight"], made["bias"] = vectors(channels), vectors(channels)
    for name, wanted in (("add", add), ("scale", scale), ("shift", shift)):
        if wanted:
            made[name] = vectors(batch, rows + channels)[:, rows:]
    return made


def _case(
    name: str,
    reason: str,
    shape: tuple[int, int, int, int],
    num_groups: int,
    production: bool = False,
    **options: Any,
) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, num_groups, **options
    )
    return Case(name, make, reason, production=production)


LAST: dict[str, Any] = {"channels_last": True}
CASES = (
    _case(
        "everything",
        "all options; a group across the seam; 3 channels per group, so that lanes stay idle",
        (2, 5, 5, 7),
        3,
        skip=4,
        add=True,
        scale=True,
        shift=True,
    ),
    _case(
        "everything_last",
        "the same, channels-last",
        (2, 5, 5, 7),
        3,
        skip=4,
        add=True,
        scale=True,
        shift=True,
        **LAST,
    ),
    _case(
        "plain",
        "no weight, no bias, no activation: an attention's norm",
        (1, 8, 6, 4),
        2,
        affine=False,
        act=False,
    ),
    _case("pixel", "one pixel, one channel: y is the bias", (3, 1, 1, 1), 1),
    _case("pixel_last", "one pixel of many channels", (2, 48, 1, 1), 4, **LAST),
    _case(
        "layer",
        "one group, layer norm: it is cut; two launches, planes, a short split",
        (1, 40, 23, 23),
        1,
        skip=26,
        add=True,
    ),
    _case("instance", "as many groups as channels, ragged plane", (2, 6, 9, 5), 6),
    _case(
        "instance_last",
        "more groups than a block holds, the last block is not full",
        (1, 40, 3, 3),
        40,
        **LAST,
    ),
    _case(
        "sliced_last",
        "both are slices of wider tensors, 16-byte aligned; scale without shift",
        (2, 16, 4, 6),
        4,
        skip=8,
        sliced=8,
        scale=True,
        **LAST,
    ),
    _case("sliced", "slices, planes; shift without scale", (2, 6, 4, 4), 2, skip=2, sliced=3, shift=True),
    _case(
        "alone", "a slice of channels without a skip, which would copy it; planes", (2, 6, 4, 4), 2, sliced=3
    ),
    _case("alone_last", "the same, channels-last", (2, 16, 4, 6), 4, sliced=8, add=True, **LAST),
    _case(
        "alone_cut",
        "the same, larger than what is copied to NCHW on CPU",
        (1, 80, 11, 19),
        1,
        sliced=8,
        **LAST,
    ),
    _case(
        "chunks",
        "add, scale and shift are columns of wider tensors; all vectors float32 beside 16-bit images",
        (2, 6, 3, 5),
        2,
        add=True,
        scale=True,
        shift=True,
        rows=7,
        wide=True,
    ),
    _case("split_last", "two launches: splits of two groups, the last one short", (1, 64, 27, 23), 2, **LAST),
    _case(
        "cut_last",
        "a group wider than a block, in two launches",
        (1, 96, 11, 19),
        1,
        skip=64,
        add=True,
        **LAST,
    ),
    _case("mean", "mean 1000, deviation 1: what E[x^2] - E[x]^2 loses", (2, 8, 9, 8), 2, mean=1000.0, **LAST),
    _case("constant", "variance 0", (1, 8, 5, 5), 2, deviation=0.0, mean=3.0, **LAST),
    # The zoo's digits: 28x28, 14x14, 7x7 with 32, 64, 96 channels in 8 groups; skips 96 + 96 .. 32 + 32.
    _case("mnist1", "latency: a digit's first block", (1, 32, 28, 28), 8, True, add=True, **LAST),
    _case(
        "mnist1_seam",
        "20 channels per group, one of them across the seam",
        (1, 96, 14, 14),
        8,
        True,
        skip=64,
        **LAST,
    ),
    # CIFAR-10 DDPM: 32x32 x 128, 16x16 .. 4x4 x 256, 32 groups.
    _case("cifar1", "latency", (1, 128, 32, 32), 32, True, add=True, **LAST),
    _case("cifar1_planes", "latency, NCHW", (1, 128, 32, 32), 32, True, add=True),
    _case("cifar1_low", "latency, lowest level", (1, 256, 4, 4), 32, True, add=True, **LAST),
    _case("cifar1_up", "latency, 12 channels per group", (1, 256, 32, 32), 32, True, skip=128, **LAST),
    _case("cifar256", "throughput, 134 MB each way in bf16", (256, 256, 32, 32), 32, True, **LAST),
    _case(
        "cifar256_up",
        "throughput, concatenation across the seam",
        (256, 256, 32, 32),
        32,
        True,
        skip=128,
        **LAST,
    ),
    _case("cifar256_planes", "throughput, NCHW", (256, 256, 32, 32), 32, True),
    _case(
        "scale_shift64", "ADM's residual blocks", (64, 256, 64, 64), 32, True, scale=True, shift=True, **LAST
    ),
    # 256x256 (LSUN): 128 channels at the top, 512 at the bottom.
    _case("lsun1", "latency: 128 x 256x256", (1, 128, 256, 256), 32, True, add=True, **LAST),
    _case("lsun1_planes", "the same, NCHW", (1, 128, 256, 256), 32, True, add=True),
    _case("lsun1_up", "concatenation, 12 channels per group", (1, 256, 128, 128), 32, True, skip=128, **LAST),
    _case("lsun16", "throughput, two launches", (16, 128, 256, 256), 32, True, **LAST),
)


def _joined(named: Arguments) -> Tensor:
    """The norm's input without `add`, in float64: [B, C, H, W] contiguous."""
    x, skip = named["x"].double(), named.get("skip")
    return (x if skip is None else torch.cat((x, skip.double()), 1)).contiguous()


def _wide(named: Arguments, name: str) -> Tensor | None:
    """A vector argument in float64, as [B or 1, C, 1, 1]."""
    value = named.get(name)
    return None if value is None else value.double().reshape(-1, value.shape[-1], 1, 1)


def _standardised(v: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """(v - mean) / sqrt(var + eps) [B, G, *] and 1 / sqrt(var + eps) [B, G, 1]."""
    groups = v.reshape(v.shape[0], num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    inverse = (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    return centred * inverse, inverse


def exact(**named: Any) -> tuple[Tensor, ...]:
    """The result in float64 from the arguments as they were rounded, with a two-pass variance."""
    v = _joined(named)
    if (add := _wide(named, "add")) is not None:
        v = v + add
    y = _standardised(v, named["num_groups"], named["eps"])[0].reshape(v.shape)
    if (weight := _wide(named, "weight")) is not None:
        y = y * weight
    if (bias := _wide(named, "bias")) is not None:
        y = y + bias
    if (scale := _wide(named, "scale")) is not None:
        y = y * (1.0 + scale)
    if (shift := _wide(named, "shift")) is not None:
        y = y + shift
    return (y * torch.sigmoid(y) if named["act"] else y,)


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor, ...]:
    """Bound of y: the formula on absolute values, times the roundings on the way."""
    v = _joined(named)
    magnitude = v.abs()
    if (add := _wide(named, "add")) is not None:
        v, magnitude = v + add, magnitude + add.abs()
    num_groups = named["num_groups"]
    normed, inverse = _standardised(v, num_groups, named["eps"])
    # v - mean carries roundings of v's parts and of the mean, whose own sum has those of all of the group.
    size = magnitude.reshape(normed.shape)
    centred = size + size.mean(2, keepdim=True)
    # An error e of the channels' means against each other moves the variance by 2 * deviation * e at most, and so
    # t = (v - mean) / deviation by |t| * e / deviation.
    error = centred * inverse * (1.0 + normed.abs())
    error = error.reshape(v.shape)
    if (weight := _wide(named, "weight")) is not None:
        error = error * weight.abs()
    if (bias := _wide(named, "bias")) is not None:
        error = error + bias.abs()
    if (scale := _wide(named, "scale")) is not None:
        error = error * (1.0 + scale.abs())
    if (shift := _wide(named, "shift")) is not None:
        error = error + shift.abs()
    if named["act"]:
        # silu' is below 1.1; exp(-z) carries z's rounding, sigmoid at most a quarter of it, times z: within |z| too.
        error = error * 1.1
    return (rounding_bound(outputs[0], error, named["x"].dtype),)


def bytes_moved(**named: Any) -> int:
    """Least traffic: inputs once, the result once."""
    images = [named["x"], *([named["skip"]] if named.get("skip") is not None else [])]
    vectors = [
        named[name] for name in ("weight", "bias", "add", "scale", "shift") if named.get(name) is not None
    ]
    return sum(2 * value.nbytes for value in images) + sum(value.nbytes for value in vectors)


def flops(**named: Any) -> int:
    """Floating-point operations: 4 an element for mean and variance, 3 to apply them, 4 for SiLU."""
    skip = named.get("skip")
    elements = named["x"].numel() + (0 if skip is None else skip.numel())
    return elements * (4 + 3 + (4 if named["act"] else 0))
