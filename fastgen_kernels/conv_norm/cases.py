"""The convolution's cases, error bounds and costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..group_norm import cases as norm_cases
from ..group_norm.reference import LOW_PRECISION
from ..op import Arguments, Case, rounding_bound
from ..patch_conv.cases import accumulated, total_bytes
from ..patch_conv.layout import pack_weight
from .reference import conv_norm, given

VECTORS = ("bias", "add", "norm_weight", "norm_bias", "scale", "shift")


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    channels: int,
    size: int = 3,
    *,
    groups: int | None = None,
    beside: int = 0,
    shortcut: tuple[int, ...] = (),
    skip: int = 0,
    layout: str = "last",
    packed: bool = True,
    bias: bool = True,
    affine: bool = True,
    wide: bool = False,
    rows: int = 0,
    vectors: tuple[str, ...] = (),
    residual: bool = False,
    **options: Any,
) -> Arguments:
    """Random arguments for x of `shape` [B, C, H, W] and `channels` results by a kernel of `size`.

    beside, skip: their channels. shortcut: channels of its one or two inputs. layout of all images: "last"
    (channels-last), "first" (contiguous), "padded" (channels-last, pixels 8 * k elements apart), "channels", "rows"
    (slices of a larger channels-last tensor). wide: vectors are float32 beside 16-bit images. rows: add, scale and
    shift are columns behind so many others. vectors: which of them there are.
    """
    batch, inputs, height, width = shape

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float32, device="cpu").to(
            device=device, dtype=dtype
        )

    def image(b: int, c: int, h: int, w: int) -> Tensor:
        def last(b: int, c: int, h: int, w: int) -> Tensor:
            return draw(b, h, w, c).permute(0, 3, 1, 2)

        return {
            "last": lambda: last(b, c, h, w),
            "first": lambda: draw(b, c, h, w),
            "padded": lambda: last(b, (c + 7) // 8 * 8, h, w)[:, :c],
            "channels": lambda: last(b, c + 8, h, w)[:, 8:],
            "rows": lambda: last(b + 1, c, h + 2, w)[1:, :, 1:-1],
        }[layout]()

    def kernel(inputs: int, size: int, share: float) -> Tensor:
        weight = draw(channels, inputs, size, size) * (share / (inputs * size * size)) ** 0.5
        return pack_weight(weight) if packed else weight

    def vector(*sizes: int) -> Tensor:
        return draw(*sizes).to(torch.float32 if wide and dtype in LOW_PRECISION else dtype)

    made: Arguments = {
        "x": image(batch, inputs, height, width),
        "weight": kernel(inputs + beside, size, 0.5 if shortcut else 1.0),
        "act": True,
    } | options
    if bias:
        made["bias"] = vector(channels)
    if beside:
        made["beside"] = image(batch, beside, height, width)
    stride, grown = made.get("stride", 1), 2 if made.get("upsample") else 1
    before, after = made.get("padding") or (size // 2, size // 2)
    down, along = ((n * grown + before + after - size) // stride + 1 for n in (height, width))
    for name, c in zip(("shortcut", "shortcut_beside"), shortcut, strict=False):
        made[name] = image(batch, c, down, along)
    if shortcut:
        made["shortcut_weight"] = kernel(sum(shortcut), 1, 0.5)
    if residual:
        made["residual"] = image(batch, channels, down, along)
    if groups is not None:
        made["num_groups"] = groups
        if affine:
            made["norm_weight"], made["norm_bias"] = vector(channels + skip), vector(channels + skip)
        if skip:
            made["skip"] = image(batch, skip, down, along)
    for name in vectors:
        made[name] = vector(batch, rows + channels + (0 if name == "add" else skip))[:, rows:]
    return made


def _case(
    name: str,
    reason: str,
    shape: tuple[int, int, int, int],
    channels: int,
    size: int = 3,
    production: bool = False,
    large: bool = False,
    **options: Any,
) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, channels, size, **options
    )
    # For the compiler float16 and bfloat16 are the same work.
    dtypes = (torch.float32, torch.bfloat16) if production else (torch.float32, torch.float16, torch.bfloat16)
    return Case(name, make, reason, dtypes, production, large)


ADD: dict[str, Any] = {"vectors": ("add",)}
_SMALL = (
    _case("first", "a block's first half: embedding, norm; images that no tile divides", (2, 16, 3, 5), 12, groups=3,
          **ADD),
    _case("second", "its second half: shortcut of two inputs, norm over a seam within a group; divided sum",
          (1, 16, 4, 4), 12, shortcut=(16, 8), groups=2, skip=8, output_scale=2.0**0.5),
    _case("plain", "no norm, no bias: several parts without one", (1, 24, 4, 3), 8, bias=False),
    _case("residual", "an attention's last product: 1x1, residual, norm without activation; an eps that shows",
          (1, 64, 4, 4), 16, 1, residual=True, groups=4, act=False, eps=0.5),
    _case("pixel", "one pixel: eight taps lie in the padding", (3, 8, 1, 1), 8, groups=2),
    _case("upsampled", "doubled by addresses", (1, 16, 3, 4), 8, groups=2, upsample=True),
    _case("halved", "stride 2 with padding all round, odd sizes", (2, 16, 7, 5), 8, stride=2, groups=2),
    _case("halved_after", "stride 2, padding on the right and at the bottom only", (1, 16, 6, 4), 8, stride=2,
          padding=(0, 1)),
    _case("picture", "3 channels in, contiguous: read as it lies; 20 out, in groups of 5", (1, 3, 6, 5), 20, groups=4,
          layout="first", packed=False),
    _case("planes", "16 channels in, contiguous: copied", (2, 16, 3, 4), 8, groups=2, layout="first", skip=8,
          residual=True, packed=False),
    _case("few", "few channels, in a shortcut of two inputs: copied as one", (1, 5, 4, 3), 8, groups=1,
          shortcut=(3, 5)),
    _case("three", "3 channels out, of which the last group of four is not full", (2, 16, 4, 4), 3),
    _case("padded", "12 channels of 16, with NaN between them", (1, 12, 3, 4), 7, groups=1, layout="padded",
          shortcut=(5,)),
    _case("beside", "two inputs, of 24 and 40 channels", (1, 24, 4, 4), 8, beside=40, groups=2),
    _case("beside_copied", "two inputs, the first of which no 8 divide", (1, 5, 4, 3), 8, beside=7, groups=1),
    _case("direct", "one step: finished where it is made, the norm in another launch",
          (2, 16, 4, 5), 12, 1, groups=3, skip=3, residual=True, output_scale=0.5, wide=True, rows=3,
          vectors=("add", "scale", "shift")),
    _case("vectors", "all vectors float32 beside 16-bit images, columns of wider tensors",
          (3, 16, 2, 3), 8, groups=2, skip=4, wide=True, rows=5, vectors=("add", "scale", "shift")),
    _case("channels", "slices of channels", (2, 16, 3, 4), 8, groups=1, skip=8, shortcut=(8, 8), residual=True,
          layout="channels"),
    _case("rows", "windows of a batch", (1, 16, 4, 3), 8, groups=4, skip=8, shortcut=(8,), residual=True,
          layout="rows"),
    _case("instance", "as many groups as channels, without weight and bias", (1, 16, 3, 3), 6, groups=6, affine=False),
    _case("large_group", "a group that no program's registers hold", (1, 32, 32, 32), 24, 1, groups=1, skip=8),
)  # fmt: skip


def _u_net(
    name: str, reason: str, shape: tuple[int, int, int, int], channels: int, size: int = 3, **options: Any
) -> Case:
    return _case(name, reason, shape, channels, size, production=True, **options)


N32: dict[str, Any] = {"groups": 32}
FIRST = ADD | N32  # of a block
# The CIFAR-10 U-Net of Ho et al. 2020 at batch 1: 32x32 of 128 channels, 16x16, 8x8 and 4x4 of 256. On the way up a
# block's input is [x, skip], normed by what made x.
_CIFAR = (
    _u_net("cifar32_first", "a block's first half at 32x32", (1, 128, 32, 32), 128, **FIRST),
    _u_net("cifar32_second", "its second half, before a block without a skip", (1, 128, 32, 32), 128, residual=True,
           **N32),
    _u_net("cifar32_up_first", "on the way up: 384 channels in", (1, 384, 32, 32), 128, **FIRST),
    _u_net("cifar32_up_second", "shortcut of 256 + 128 channels; a skip of 128 in the norm",
           (1, 128, 32, 32), 128, shortcut=(256, 128), skip=128, **N32),
    _u_net("cifar_in", "3 channels, the first norm", (1, 3, 32, 32), 128, **N32),
    _u_net("cifar_out", "the last convolution, to 3 channels", (1, 128, 32, 32), 3),
    _u_net("cifar16_down", "32x32 to 16x16, stride 2", (1, 128, 32, 32), 128, stride=2, padding=(0, 1), **N32),
    _u_net("cifar16_first", "a block's first half at 16x16", (1, 256, 16, 16), 256, **FIRST),
    _u_net("cifar16_second", "shortcut of 128 channels", (1, 256, 16, 16), 256, shortcut=(128,), **N32),
    _u_net("cifar16_up_first", "512 channels in", (1, 512, 16, 16), 256, **FIRST),
    _u_net("cifar16_up_second", "12 channels a group, one across the seam", (1, 256, 16, 16), 256,
           shortcut=(256, 256), skip=128, **N32),
    _u_net("cifar16_qkv", "attention's three products in one", (1, 256, 16, 16), 768, 1),
    _u_net("cifar16_proj", "attention's last product", (1, 256, 16, 16), 256, 1, residual=True, **N32),
    _u_net("cifar8_first", "a block's first half at 8x8", (1, 256, 8, 8), 256, **FIRST),
    _u_net("cifar8_second", "its second half", (1, 256, 8, 8), 256, residual=True, **N32),
    _u_net("cifar4_first", "a block's first half at 4x4", (1, 256, 4, 4), 256, **FIRST),
    _u_net("cifar4_up_second", "shortcut of 256 + 256 channels; a skip of 256", (1, 256, 4, 4), 256,
           shortcut=(256, 256), skip=256, **N32),
    _u_net("cifar16_grown", "8x8 to 16x16, with the skip of the first block there", (1, 256, 8, 8), 256, upsample=True,
           skip=256, **N32),
    _u_net("cifar32_first_4", "four images: no parts", (4, 128, 32, 32), 128, **FIRST),
)  # fmt: skip
# The 256x256 U-Net (114 M parameters) at batch 1: its lowest levels, where cuDNN has too few tiles, and its highest.
_LSUN = (
    _u_net("lsun8_first", "512 channels at 8x8", (1, 512, 8, 8), 512, **FIRST),
    _u_net("lsun32_first", "256 channels at 32x32", (1, 256, 32, 32), 256, **FIRST),
    _u_net("lsun64_second", "256 channels at 64x64", (1, 256, 64, 64), 256, residual=True, large=True, **N32),
    _u_net("lsun256_first", "128 channels at 256x256: the large tile", (1, 128, 256, 256), 128, large=True, **FIRST),
)  # fmt: skip
CASES = _SMALL + _CIFAR + _LSUN


def _double(named: Arguments) -> Arguments:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in named.items()}


def exact(**named: Any) -> tuple[Tensor, ...]:
    """Both maps in float64 from the arguments as they were rounded; raw is not rounded before the norm."""
    raw, normed = conv_norm(**_double(_raw_only(named)))
    if named.get("num_groups") is None:
        return raw, normed
    return raw, norm_cases.exact(**_norm(named, raw))[0]


def _raw_only(named: Arguments) -> Arguments:
    of_norm = ("num_groups", "norm_weight", "norm_bias", "eps", "skip", "scale", "shift")
    return {name: value for name, value in named.items() if name not in of_norm}


def _norm(named: Arguments, raw: Tensor) -> Arguments:
    """The norm's arguments, as `group_norm` takes them."""
    a = given(**named)
    renamed = {"weight": a["norm_weight"], "bias": a["norm_bias"]}
    return (
        {"x": raw}
        | renamed
        | {name: a[name] for name in ("num_groups", "eps", "skip", "scale", "shift", "act")}
    )


def magnitude(named: Arguments) -> Tensor:
    """raw from the arguments' absolute values, in float64."""
    positive: Arguments = {
        name: value.abs() if isinstance(value, Tensor) else value
        for name, value in _double(_raw_only(named)).items()
    }
    return conv_norm(**positive)[0]


def terms(named: Arguments) -> int:
    """Products in a sum."""
    weight, shortcut = named["weight"], named.get("shortcut_weight")
    return weight[0].numel() + (0 if shortcut is None else shortcut.shape[1])


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor, ...]:
    """Bounds of raw and normed.

    raw: one rounding, the products' sum in float32, and one rounding each for bias, embedding, residual, shortcut and
    division. normed: the norm's own bound, of a raw that was rounded, and what raw's error e does to it: v - mean moves
    by e + mean(e) at most; the deviation, which is a norm of the centred values, by the root mean square of e at most.
    """
    x = named["x"]
    raw, normed = outputs
    bound = rounding_bound(raw, magnitude(named), x.dtype, accumulated(x, terms(named)) + 5.0)
    if named.get("num_groups") is None:
        return bound, normed
    norm = _norm(named, raw.to(x.dtype))
    (own,) = norm_cases.tolerance((normed,), norm)
    skip, scale, groups = norm["skip"], norm["scale"], norm["num_groups"]
    v = raw if skip is None else torch.cat((raw, skip.double()), 1)
    e = bound if skip is None else torch.cat((bound, torch.zeros_like(skip, dtype=torch.float64)), 1)
    v, e = (value.reshape(value.shape[0], groups, -1) for value in (v, e))
    v = v - v.mean(2, keepdim=True)
    deviation = (v.square().mean(2, keepdim=True) + norm["eps"]).sqrt()
    moved = e.square().mean(2, keepdim=True).sqrt()
    least = (deviation - moved).clamp(min=torch.finfo(torch.float64).tiny)
    error = ((e + e.mean(2, keepdim=True) + v.abs() / deviation * moved) / least).reshape(normed.shape)
    for value, offset in ((norm["weight"], 0.0), (scale, 1.0)):
        if value is not None:
            error = error * (offset + value.double().reshape(-1, value.shape[-1], 1, 1)).abs()
    if norm["act"]:
        error = error * 1.1  # silu' is below 1.1
    return bound, own + error


def bytes_moved(**named: Any) -> int:
    """Least traffic: every input read once, raw and normed written once. Parts of sums stay in the L2 cache."""
    a = given(**named)
    batch, channels, pixels = a["x"].shape[0], len(a["weight"]), _pixels(a)
    wide = 0 if a["num_groups"] is None else channels + (0 if a["skip"] is None else a["skip"].shape[1])
    tensors = [value for value in a.values() if isinstance(value, Tensor)]
    return total_bytes(*tensors) + batch * pixels * (channels + wide) * a["x"].element_size()


def _pixels(a: Arguments) -> int:
    """Of an image of the result."""
    size, (before, after) = a["weight"].shape[2], a["padding"]
    grown = 2 if a["upsample"] else 1
    return math.prod((n * grown + before + after - size) // a["stride"] + 1 for n in a["x"].shape[2:])


def flops(**named: Any) -> int:
    """Multiplications and additions of the products, those in the padding too; one for everything that is added or
    multiplied; the norm's as `group_norm` counts them."""
    a = given(**named)
    results = a["x"].shape[0] * len(a["weight"]) * _pixels(a)
    after = sum(a[name] is not None for name in ("bias", "add", "residual")) + (a["output_scale"] != 1.0)
    count = results * (2 * terms(named) - 1 + after)
    if a["num_groups"] is not None:
        elements = results + (0 if a["skip"] is None else a["skip"].numel())
        count += elements * (7 + (4 if a["act"] else 0))
    return count
