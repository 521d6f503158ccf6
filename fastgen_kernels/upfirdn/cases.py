"""Cases, error bounds and costs of resampling with an epilogue."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import Arguments, Case, rounding_bound
from .reference import output_shape, upfirdn

Shape = tuple[int, int, int, int]
BLUR = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's
BINOMIAL = (1.0, 2.0, 1.0)  # StyleGAN's


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: Shape,
    taps: tuple[float, ...] | int | None = BLUR,
    *,
    layout: str = "last",
    vectors: tuple[str, ...] = (),
    noise: int = 0,
    each: bool = False,
    beside: torch.dtype | None = None,
    **options: Any,
) -> Arguments:
    """Random arguments of `upfirdn` for x of `shape` [B, C, H, W].

    taps: of the filter, which is brought to a sum of 1; a number: so many random ones; None: no filter. layout of x:
    "last" (channels-last), "first" (contiguous), "window" (rows and columns of a larger contiguous tensor), "channels"
    (of a larger channels-last one). vectors: which of scale, bias and post_scale there are. noise: its number of
    samples; each: with a weight for every channel. beside: the type of all tensors but x.
    """
    batch, channels, height, width = shape
    parameters = dtype if beside is None or dtype == torch.float64 else beside

    def draw(*size: int, kind: torch.dtype | None = None) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float32, device="cpu").to(
            device, kind or parameters
        )

    def last(b: int, c: int, h: int, w: int) -> Tensor:
        return draw(b, h, w, c, kind=dtype).permute(0, 3, 1, 2)

    x = {
        "last": lambda: last(*shape),
        "first": lambda: draw(*shape, kind=dtype),
        "window": lambda: draw(batch + 1, channels, height + 2, width + 3, kind=dtype)[1:, :, 1:-1, 2:-1],
        "channels": lambda: last(batch, channels + 8, height, width)[:, 8:],
    }[layout]()
    made: Arguments = {"x": x}
    filter = None
    if isinstance(taps, int):
        filter = draw(taps)
    elif taps is not None:
        filter = (torch.tensor(taps, dtype=torch.float64, device="cpu") / sum(taps)).to(device, parameters)
    if filter is not None:
        made["filter"] = filter
    made |= options
    ends = options.get("padding", (0, 0))
    sides = output_shape(x, filter, options.get("up", 1), options.get("down", 1), ends)[2:]
    for name in vectors:
        made[name] = draw(channels) if name == "bias" else draw(batch, channels)
    if noise:
        made["noise"] = draw(noise, 1, *sides)
        made["noise_weight"] = draw(channels if each else 1)
    return made


def _case(name: str, reason: str, shape: Shape, production: bool = False, **options: Any) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, **options
    )
    # For the compiler float16 and bfloat16 are the same work.
    dtypes = (torch.float32, torch.bfloat16) if production else (torch.float32, torch.float16, torch.bfloat16)
    return Case(name, make, reason, dtypes, production)


ROOT = math.sqrt(2.0)
# Of a StyleGAN2 layer; behind its first convolution of a resolution stands only the second.
LAYER: Arguments = {"vectors": ("scale", "bias"), "noise": 1, "slope": 0.2, "act_gain": ROOT}
FIRST: Arguments = LAYER | {"vectors": ("scale", "bias", "post_scale")}

CASES = (
    _case("blur", "StyleGAN2's filter, even; ragged channels and columns", (2, 3, 5, 7), padding=(2, 1)),
    _case("up", "upsampling by 2; an epilogue of everything", (2, 5, 3, 4), up=2, padding=(2, 1), gain=4.0, **FIRST),
    _case("down", "downsampling by 2, odd sides", (1, 3, 7, 5), down=2, padding=(1, 1), layout="first"),
    _case("binomial", "StyleGAN's filter of 3 taps, contiguous", (2, 2, 4, 6), taps=BINOMIAL, padding=(1, 1),
          layout="first"),
    _case("epilogue", "no filter: the epilogue of a layer that keeps the size", (2, 6, 3, 5), taps=None, **LAYER),
    _case("epilogue_first", "the same, contiguous, noise for each sample and weights for each channel",
          (2, 3, 4, 5), taps=None, layout="first", vectors=("scale", "bias"), noise=2, each=True, slope=0.2),
    _case("modulation", "no filter, nothing but a scale, contiguous", (3, 4, 2, 3), taps=None, layout="first",
          vectors=("scale",)),
    _case("identity", "nothing to do but a copy", (1, 3, 2, 2), taps=None),
    _case("crop", "negative padding, on a side of which nothing is left to filter", (1, 3, 8, 9), padding=(-2, -1)),
    _case("lopsided", "a filter of 5 random taps, which shows where it is not flipped", (2, 2, 6, 5), taps=5,
          padding=(3, 0)),
    _case("both", "up by 3, down by 2, together", (1, 3, 5, 4), taps=7, up=3, down=2, padding=(4, 2), gain=9.0),
    _case("sparse", "up by 3 with 2 taps: a phase has none", (1, 2, 3, 3), taps=2, up=3, padding=(1, 0)),
    _case("decimate", "down by 5, further than the filter is long", (1, 2, 11, 12), taps=BINOMIAL, down=5,
          layout="first"),
    _case("pixel", "one pixel, most taps in the padding", (2, 3, 1, 1), up=2, padding=(2, 1), gain=4.0),
    _case("one", "one pixel, one channel, one tap", (1, 1, 1, 1), taps=1, vectors=("post_scale",)),
    _case("window", "rows and columns of a larger image", (2, 3, 5, 4), padding=(1, 2), layout="window"),
    _case("channels", "some channels of a channels-last image", (2, 9, 4, 3), up=2, padding=(2, 1), layout="channels"),
    _case("float32_beside", "parameters kept in float32", (1, 4, 5, 5), padding=(1, 1), beside=torch.float32, **FIRST),
    _case("blocks", "more rows, columns and channels than a program takes", (2, 136, 9, 19), padding=(1, 1), **LAYER),
    _case("blocks_first", "the same, contiguous", (2, 3, 9, 519), padding=(1, 1), layout="first"),
    # StyleGAN2 at batch 1, channels-last: a transposed convolution has left 2H + 1 pixels.
    _case("layer8", "latency: behind the first transposed convolution", (1, 512, 9, 9), True, padding=(1, 1), gain=4.0,
          beside=torch.float32, **FIRST),
    _case("layer32", "latency: 512 channels at 32x32", (1, 512, 33, 33), True, padding=(1, 1), gain=4.0,
          beside=torch.float32, **FIRST),
    _case("layer256", "64 channels at 256x256", (1, 64, 257, 257), True, padding=(1, 1), gain=4.0,
          beside=torch.float32, **FIRST),
    _case("layer1024", "32 channels at 1024x1024", (1, 32, 1025, 1025), True, padding=(1, 1), gain=4.0,
          beside=torch.float32, **FIRST),
    _case("same4", "latency: the first layer's epilogue", (1, 512, 4, 4), True, taps=None, beside=torch.float32,
          **LAYER),
    _case("same256", "an epilogue at 256x256", (8, 64, 256, 256), True, taps=None, beside=torch.float32, **LAYER),
    _case("style64", "a modulation of 512 channels", (8, 512, 64, 64), True, taps=None, vectors=("scale",),
          beside=torch.float32),
    # StyleGAN's blur, behind which its noise and AdaIN stand.
    _case("blur128", "StyleGAN's blur", (1, 128, 128, 128), True, taps=BINOMIAL, padding=(1, 1), beside=torch.float32),
    # The discriminator's, before a convolution of stride 2.
    _case("down64", "the discriminator's blur", (8, 256, 64, 64), True, padding=(2, 2), beside=torch.float32),
    _case("skip_down", "a discriminator's shortcut, half the side", (8, 128, 128, 128), True, down=2, padding=(1, 1),
          beside=torch.float32),
)  # fmt: skip


def double(value: Any) -> Any:
    """A tensor in float64; anything else as it is."""
    return value.double() if isinstance(value, Tensor) else value


def exact(**named: Any) -> tuple[Tensor]:
    """The operation in float64 from the arguments as they were rounded."""
    return (upfirdn(**{name: double(value) for name, value in named.items()}),)


def magnitude(named: Arguments) -> Tensor:
    """The operation on absolute values, float64; LeakyReLU passes an error on at most times max(1, slope)."""
    positive = {
        name: double(value).abs() if isinstance(value, Tensor) else value for name, value in named.items()
    }
    positive |= {
        "slope": 1.0,
        "gain": abs(named.get("gain", 1.0)),
        "act_gain": abs(named.get("act_gain", 1.0)),
    }
    return upfirdn(**positive) * max(1.0, abs(named.get("slope", 1.0)))


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor]:
    """One rounding to y's type; in float32 a sum of T products, another of T of those, and one for each factor."""
    filter = named.get("filter")
    taps = 0 if filter is None else len(filter)
    # n products and n - 1 additions round at most 2 n - 1 times; then gain, scale, noise (2), bias, slope, act_gain
    # and post_scale.
    roundings = 4.0 * taps + 8.0
    return (rounding_bound(outputs[0], magnitude(named), named["x"].dtype, roundings),)


def bytes_moved(**named: Any) -> int:
    """Least traffic: everything read once, y written once."""
    tensors = [value for value in named.values() if isinstance(value, Tensor)]
    size = named["x"].element_size()
    return sum(t.numel() * t.element_size() for t in tensors) + _outputs(named) * size


def flops(**named: Any) -> int:
    """Products and sums of taps that meet a pixel, along the columns and then the rows; those of the epilogue."""
    x, filter, up = named["x"], named.get("filter"), named.get("up", 1)
    taps = 0 if filter is None else -(-len(filter) // up)
    shape = _shape(named)
    columns = shape[3] * x.shape[2] * shape[0] * shape[1]  # rows of the input filtered along their columns
    count = (columns + math.prod(shape)) * max(2 * taps - 1, 0)
    each = sum(named.get(name) is not None for name in ("scale", "bias", "post_scale"))
    each += 2 * (named.get("noise") is not None) + 2 * (named.get("slope", 1.0) != 1.0)
    each += sum(named.get(name, 1.0) != 1.0 for name in ("gain", "act_gain"))
    return count + each * math.prod(shape)


def _shape(named: Arguments) -> tuple[int, int, int, int]:
    x, filter = named["x"], named.get("filter")
    ends = named.get("padding", (0, 0))
    return output_shape(x, filter, named.get("up", 1), named.get("down", 1), (ends[0], ends[1]))


def _outputs(named: Arguments) -> int:
    return math.prod(_shape(named))
