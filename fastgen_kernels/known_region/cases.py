"""The cases of `known_region`, its error bounds and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import Arguments, Case, rounding_bound
from .reference import known_region


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    guided: bool = False,
    channels_last: bool = False,
    directed: str = "",
    keep: str = "mixed",
    levels: str = "noisy",
    untouched: tuple[int, ...] = (),
) -> Arguments:
    """Random arguments for a state of `shape` [B, C, H, W] and a network in `dtype`.

    directed: "all" or "some" of the samples have a direction. keep: "mixed" has zeros, ones and shares, "hard" zeros
    and ones. levels: "clean" is alpha 1 and sigma 0. untouched: samples without a level, whose known image is NaN; x is
    NaN in one element that a hard mask replaces.
    """
    state = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=state, device="cpu")

    batch, channels = shape[:2]
    x, known, noise = draw(*shape), draw(*shape), draw(*shape)
    share = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").to(state)
    hard = (share < 0.5).to(state)
    shares = hard if keep == "hard" else torch.where(share * 7 % 1 < 0.5, hard, share)
    if keep == "hard" and not directed:
        x.view(-1)[int(hard.flatten().argmax())] = torch.nan
    level = torch.rand(batch, 3, generator=generator, dtype=torch.float64, device="cpu").to(state)
    if levels == "clean":
        level[:, 0], level[:, 1] = 1.0, 0.0
    level[list(untouched), 0] = torch.nan
    known[list(untouched)] = torch.nan
    y = draw((2 if guided else 1) * batch, *shape[1:]).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    named: Arguments = {
        "x": x.to(device),
        "y": y.to(device, memory_format=layout),
        "known": known.to(device),
        "keep": shares.to(device),
        "noise": noise.to(device),
        "levels": level.to(device),
    }
    if directed:
        direction = torch.nn.functional.normalize(draw(batch, channels), dim=1)
        if directed == "some":
            direction[::2] = 0.0
        named["direction"] = direction.to(device)
    return named


def _case(
    name: str, reason: str, shape: tuple[int, int, int, int], production: bool = False, **options: Any
) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, **options
    )
    return Case(name, make, reason, production=production)


CASES = (
    _case("ragged", "35 pixels divide by nothing; shares between 0 and 1", (2, 3, 5, 7)),
    _case("hard", "zeros and ones, where a NaN of x is replaced", (3, 2, 6, 6), keep="hard"),
    _case("colour", "one combination of channels", (2, 3, 4, 6), directed="all"),
    _case("one", "a single element: every mask has one true lane", (1, 1, 1, 1)),
    _case("clean", "the last step: what is known comes out as it is", (2, 1, 9, 7), levels="clean"),
    _case("unlike", "a direction in some samples of a batch", (4, 3, 3, 5), directed="some"),
    _case("untouched", "samples of a batch that know nothing", (4, 2, 5, 5), untouched=(0, 2)),
    _case("guided", "both halves of the input", (2, 3, 5, 5), guided=True),
    _case("last", "channels-last input", (2, 3, 6, 6), channels_last=True),
    _case("last_guided", "the same, guided", (3, 4, 4, 10), guided=True, channels_last=True, untouched=(1,)),
    _case("tiles", "more than one tile of a plane", (2, 2, 13, 29), directed="some"),
    _case("many", "many channels", (2, 17, 3, 3), directed="all", channels_last=True),
    _case("mnist1", "latency: one digit", (1, 1, 28, 28), production=True, guided=True),
    _case("mnist16", "a small batch of digits, in colour mode", (16, 1, 28, 28), True, directed="some"),
    _case("cifar64", "colour images, channels-last", (64, 3, 32, 32), True, guided=True, channels_last=True),
    _case("lsun16", "bandwidth", (16, 3, 256, 256), production=True),
)


def exact(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """In float64 from the arguments as they were rounded."""
    d = None if direction is None else direction.double()
    return known_region(
        x.double(), y.double(), known.double(), keep.double(), noise.double(), levels.double(), d
    )


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor, ...]:
    """Bounds of x_next and y_next: the formula on absolute values, times the roundings on the way."""
    x, y, known, keep, noise, levels = (
        named[name].double() for name in ("x", "y", "known", "keep", "noise", "levels")
    )
    alpha, sigma, scale = levels.abs()[:, :, None, None, None].unbind(1)
    x = x.abs()
    target = alpha * known.abs() + sigma * noise.abs()
    direction = named.get("direction")
    if direction is not None:
        d = direction.double().abs()[:, :, None, None]
        # The sum over channels passes as many additions as there are.
        added = 1.0 + x.shape[1] / 8.0
        along = x + added * d * (d * (target + x)).sum(1, keepdim=True)
        target = torch.where((d != 0).any(1, keepdim=True), along, target)
    magnitude = (x + keep * (target + x)).nan_to_num(nan=0.0)
    y_magnitude = (scale * magnitude).nan_to_num(nan=0.0)
    y_magnitude = torch.cat((y_magnitude, y_magnitude)) if y.shape[0] != x.shape[0] else y_magnitude
    x_exact, y_exact = outputs
    return (
        rounding_bound(x_exact, magnitude, named["x"].dtype),
        rounding_bound(y_exact, y_magnitude, named["y"].dtype),
    )


def bytes_moved(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None = None,
) -> int:
    """Least traffic: x, known, keep and noise in, x and y out."""
    return 5 * x.numel() * x.element_size() + y.numel() * y.element_size()


def flops(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None = None,
) -> int:
    """Floating-point additions and multiplications."""
    return x.numel() * (7 + (6 if direction is not None else 0))
