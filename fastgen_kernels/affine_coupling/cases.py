"""The affine coupling's cases, error bounds and costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import Arguments, Case, rounding_bound
from .reference import affine_coupling, argument, changed, log_scale_of, scale_of, split


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    scale: str = "exp",
    part: slice | None = None,
    samples: int = 0,
    channels_last: str = "",
    masked: str = "",
    rescaled: bool = False,
    **options: Any,
) -> Arguments:
    """Random arguments of `affine_coupling` for a whole state of `shape` and a network in `dtype`.

    part: x is this slice of the state's channels. samples: x and network are slices of buffers for so many samples
    more, which hold NaN. channels_last: those of "x network" that are. masked: shape of a random mask, "chw", "hw" or
    "c". Where x stays as it is, the network's output is NaN, and so is the first such element of x.
    """
    state = torch.float64 if dtype == torch.float64 else torch.float32
    batch = shape[0]

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=state, device="cpu")

    def laid_out(value: Tensor, name: str) -> Tensor:
        last = name in channels_last.split()
        if samples:
            value = torch.cat(
                (value, torch.full((samples, *value.shape[1:]), torch.nan, dtype=value.dtype, device="cpu"))
            )
        return value.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)

    whole = draw(*shape)
    x = whole if part is None else whole[:, part]
    network = draw(batch, (1 if scale == "additive" else 2) * x.shape[1], *shape[2:])
    named: Arguments = {"scale": scale} | options
    if rescaled:
        named["rescale"] = (draw(x.shape[1]) * 1.5).to(device)
    if masked:
        sizes = (
            x.shape[1:]
            if x.dim() == 2
            else tuple(
                size if letter in masked else 1 for letter, size in zip("chw", x.shape[1:], strict=True)
            )
        )
        named["mask"] = (torch.rand(sizes, generator=generator, dtype=torch.float32, device="cpu") < 0.5).to(
            device
        )
    active = changed(x, named["mask"].cpu() if masked else None, options.get("parity"))
    if active is not None:
        kept = ~active.expand(x.shape[1:])
        x[0].masked_fill_(kept & (kept.flatten().cumsum(0).view(kept.shape) == 1), torch.nan)
        interleaved = options.get("parameters", "").endswith("interleaved")
        both = (
            kept
            if scale == "additive"
            else (kept.repeat_interleave(2, 0) if interleaved else torch.cat((kept, kept)))
        )
        network.masked_fill_(both, torch.nan)
    whole = laid_out(whole, "x")[:batch]
    network = laid_out(network.to(dtype), "network")[:batch]
    return {"x": whole if part is None else whole[:, part], "network": network} | named


def _case(name: str, reason: str, shape: tuple[int, ...], production: bool = False, **options: Any) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, **options
    )
    return Case(name, make, reason, production=production)


def _half(channels: int) -> slice:
    """The half of so many channels that a coupling changes."""
    return slice(channels // 2, None)


CASES = (
    _case(
        "half", "Glow: the upper half of the channels, a view", (3, 4, 6, 6), part=_half(4), scale="sigmoid"
    ),
    _case(
        "checkerboard",
        "RealNVP: whole tensors, NaN where nothing changes",
        (2, 3, 5, 7),
        parity=1,
        scale="tanh",
        bound=2.0,
        rescaled=True,
    ),
    _case("vectors", "tabular flow: several samples a program's tile", (37, 6), part=_half(6), inverse=True),
    _case("one", "a single element: every mask has one true lane", (1, 1, 1, 1)),
    _case(
        "pixel", "one pixel: channels are the run", (5, 6, 1, 1), part=_half(6), scale="soft_clip", slope=1e-2
    ),
    _case(
        "ragged",
        "n = 105 divides by nothing; nflows' scale and order",
        (2, 3, 5, 7),
        scale="sigmoid",
        eps=1e-3,
        parameters="shift_scale",
    ),
    _case(
        "additive", "NICE: no scale, log_det 0", (2, 4, 3, 5), part=_half(4), scale="additive", inverse=True
    ),
    _case(
        "every_other",
        "channels 0, 2, 4; Glow's interleaved shift and scale, shifted first",
        (2, 6, 4, 5),
        part=slice(None, None, 2),
        scale="sigmoid",
        parameters="shift_scale_interleaved",
        shift_first=True,
    ),
    _case(
        "last",
        "both channels-last, in slices of larger batches",
        (2, 6, 4, 6),
        part=_half(6),
        samples=1,
        channels_last="x network",
        scale="soft_clip",
        inverse=True,
    ),
    _case(
        "last_six",
        "Glow's first scale channels-last: runs of 24 bytes, 8-byte words at best",
        (2, 12, 3, 4),
        part=_half(12),
        channels_last="x network",
        scale="sigmoid",
    ),
    _case(
        "mixed",
        "a channels-last network beside a contiguous state",
        (2, 12, 5, 6),
        part=_half(12),
        channels_last="network",
        scale="sigmoid",
        inverse=True,
        shift_first=True,
    ),
    _case(
        "last_parity",
        "channels-last, one run when additive",
        (2, 3, 4, 5),
        parity=0,
        channels_last="x network",
        scale="additive",
    ),
    _case("masked", "any mask, shift first", (2, 3, 4, 7), masked="chw", shift_first=True),
    _case(
        "masked_plane",
        "one mask for all channels; interleaved",
        (2, 4, 5, 5),
        masked="hw",
        scale="tanh",
        parameters="scale_shift_interleaved",
    ),
    _case(
        "masked_channels",
        "whole channels stay; channels-last",
        (2, 5, 3, 4),
        masked="c",
        channels_last="x network",
        scale="sigmoid",
        eps=1e-3,
        inverse=True,
    ),
    _case("vectors_masked", "a mask over features", (5, 7), masked="d", scale="sigmoid", eps=1e-2),
    _case(
        "vectors_parity",
        "every other feature; interleaved, rescaled",
        (6, 9),
        parity=0,
        scale="tanh",
        rescaled=True,
        parameters="shift_scale_interleaved",
        shift_first=True,
        inverse=True,
    ),
    _case(
        "silent",
        "sampling: no log_det",
        (3, 4, 4, 4),
        part=_half(4),
        scale="sigmoid",
        inverse=True,
        log_det=False,
    ),
    _case(
        "divided",
        "above one program's share: two launches, a ragged last tile",
        (1, 2, 67, 67),
        part=_half(2),
    ),
    # Glow on 32x32 images: three scales, 12 x 16 x 16, 24 x 8 x 8, 48 x 4 x 4.
    _case("glow1", "latency: one small image", (1, 12, 16, 16), True, part=_half(12), scale="sigmoid"),
    _case("glow64", "a batch, first scale", (64, 12, 16, 16), True, part=_half(12), scale="sigmoid"),
    _case(
        "glow64_inverse",
        "sampling a batch",
        (64, 12, 16, 16),
        True,
        part=_half(12),
        scale="sigmoid",
        inverse=True,
        log_det=False,
    ),
    _case(
        "glow64_last",
        "third scale, channels-last",
        (64, 48, 4, 4),
        True,
        part=_half(48),
        scale="sigmoid",
        channels_last="x network",
    ),
    _case(
        "glow64_mixed",
        "second scale, channels-last network only",
        (64, 24, 8, 8),
        True,
        part=_half(24),
        scale="sigmoid",
        channels_last="network",
    ),
    _case("realnvp64", "checkerboard", (64, 3, 32, 32), True, parity=1, scale="tanh", rescaled=True),
    # The other maps, masks and orders, for the compile gate: a small batch each.
    _case("zuko8", "soft clip", (8, 12, 16, 16), True, part=_half(12), scale="soft_clip"),
    _case(
        "nflows8",
        "sigmoid with eps, shift first in the channels",
        (8, 12, 16, 16),
        True,
        part=_half(12),
        scale="sigmoid",
        eps=1e-3,
        parameters="shift_scale",
    ),
    _case(
        "tanh8", "tanh of whole halves", (8, 12, 16, 16), True, part=_half(12), scale="tanh", rescaled=True
    ),
    _case("masked8", "any mask", (8, 12, 16, 16), True, masked="chw"),
    _case(
        "interleaved8",
        "Glow's own order",
        (8, 12, 16, 16),
        True,
        part=_half(12),
        scale="sigmoid",
        parameters="shift_scale_interleaved",
        shift_first=True,
    ),
    _case("nice1000", "additive, vectors", (1000, 784), True, part=_half(784), scale="additive"),
    _case("tabular", "many small vectors", (65_536, 16), True, part=_half(16)),
    _case("large", "bandwidth: one program's share and more", (512, 12, 64, 64), True, part=_half(12)),
    _case("large_sigmoid", "the dearest map", (512, 12, 64, 64), True, part=_half(12), scale="sigmoid"),
    _case(
        "large_checkerboard",
        "bandwidth of a checkerboard",
        (256, 3, 128, 128),
        True,
        parity=0,
        scale="tanh",
        rescaled=True,
    ),
    _case(
        "large_last",
        "bandwidth, channels-last",
        (256, 48, 32, 32),
        True,
        part=_half(48),
        channels_last="x network",
    ),
    _case("picture256", "latency: one large image, divided", (1, 12, 128, 128), True, part=_half(12)),
)


def exact(x: Tensor, network: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The coupling in float64 from the arguments as they were rounded."""
    if options.get("rescale") is not None:
        options["rescale"] = options["rescale"].double()
    return affine_coupling(x.double(), network.double(), **options)


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor, ...]:
    """Bounds of y and log_det: one rounding of the result, and those on the way."""
    y, total = outputs
    x, network = named["x"], named["network"].double()
    state, scale = x.double(), named.get("scale", "exp")
    inverse, shift_first = named.get("inverse", False), named.get("shift_first", False)
    active = changed(x, named.get("mask"), named.get("parity"))
    if active is None:
        active = torch.ones((), dtype=torch.bool, device=x.device)
    active = active.expand(x.shape)
    if scale == "additive":
        magnitude = (state.abs() + network.abs()).masked_fill(~active, 0.0)
        return rounding_bound(y, magnitude, x.dtype), torch.full_like(total, torch.finfo(x.dtype).tiny)

    s, t = split(network, named.get("parameters", "scale_shift"))
    rescale = named.get("rescale")
    eps = named.get("eps", 0.0)
    rescale = None if rescale is None else rescale.double()
    u = argument(s, scale, named.get("bound", 1.0), named.get("slope", 1e-3), rescale)
    a = scale_of(u, scale, eps)
    log_a = log_scale_of(u, a, scale, eps)
    # An exponential carries its argument's absolute error: of s + 2 for the sigmoid, else of log a.
    carried = s.abs() + 2.0 if scale == "sigmoid" else log_a.abs()
    factor = (1.0 / a if inverse else a) * (1.0 + carried)
    moved, shift = state.abs(), t.abs()
    shift_last = inverse == shift_first  # x * a + t, or x / a - t
    magnitude = moved * factor + shift if shift_last else (moved + shift) * factor

    # Each of log a's own roundings: none where it is s itself; relative ones of the map; the sigmoid's carries its
    # exponential's; with eps, the logarithm of a value near 1 carries that value's relative error as an absolute one.
    if scale == "exp":
        single = torch.zeros_like(log_a)
    elif scale == "sigmoid" and eps:
        single = 1.0 + carried
    else:
        single = log_a.abs() * (1.0 + (carried if scale == "sigmoid" else 0.0))
    # Each element passes as many additions as the tree has levels.
    levels = max(math.ceil(math.log2(x[0].numel())), 1)
    single = (single + levels / 8.0 * log_a.abs()).masked_fill(~active, 0.0)
    added = single.flatten(1).sum(1) if total.numel() else total
    return (
        rounding_bound(y, magnitude.masked_fill(~active, 0.0), x.dtype),
        rounding_bound(total, added, x.dtype),
    )


def bytes_moved(x: Tensor, network: Tensor, **options: Any) -> int:
    """Least traffic: x in, y out, the network in, and log_det.

    In a checkerboard that is the whole of each, for memory moves in sectors of 32 bytes, which changed elements
    share with others; masks are counted alike.
    """
    mask = options.get("mask")
    total = 2 * x.numel() * x.element_size() + network.numel() * network.element_size()
    if options.get("log_det", True):
        total += x.shape[0] * x.element_size()
    return total + (0 if mask is None else mask.numel())


# Additions, multiplications, divisions and exponentials of a scale map, as the kernel computes it.
MAP_FLOPS = {"exp": 1, "sigmoid": 26, "tanh": 18, "soft_clip": 4, "additive": 0}


def flops(x: Tensor, network: Tensor, **options: Any) -> int:
    """Floating-point operations on the elements that change."""
    scale = options.get("scale", "exp")
    active = changed(x, options.get("mask"), options.get("parity"))
    elements = x.numel() if active is None else x.shape[0] * int(active.expand(x.shape[1:]).sum())
    affine = 1 if scale == "additive" else 2
    summed = int(options.get("log_det", True) and scale != "additive")
    return elements * (affine + MAP_FLOPS[scale] + summed)
