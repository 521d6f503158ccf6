"""The modulated convolution's cases, error bounds and costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import UNIT_ROUNDOFF, Arguments, Case, rounding_bound
from ..patch_conv.cases import accumulated
from ..upfirdn.cases import BLUR, double
from .reference import modulated_conv, output_shape, weight_energy

Shape = tuple[int, int, int, int]


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: Shape,
    channels: int,
    size: int = 3,
    *,
    taps: tuple[float, ...] = BLUR,
    layout: str = "last",
    energy: bool = False,
    noise: int = 0,
    each: bool = False,
    vectors: tuple[str, ...] = (),
    beside: torch.dtype | None = None,
    **options: Any,
) -> Arguments:
    """Random arguments of `modulated_conv` for x of `shape` [B, I, H, W] and `channels` results.

    taps: of the filter, where `up` is 2. layout of x: "last" (channels-last), "first" (contiguous), "window" (of a
    larger contiguous tensor), "channels" (of a larger channels-last one). energy: whether it is given. noise: its
    number of samples; each: with a weight for every channel. vectors: which of bias and post_scale there are. beside:
    the type of all tensors but x and weight. Styles are columns of a wider tensor, as one product for all layers
    leaves them.
    """
    batch, inputs, height, width = shape
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
        "window": lambda: draw(batch, inputs, height + 2, width + 1, kind=dtype)[:, :, 1:-1, 1:],
        "channels": lambda: last(batch, inputs + 8, height, width)[:, 8:],
    }[layout]()
    up = options.get("up", 1)
    weight = (draw(channels, inputs, size, size, kind=torch.float32) * (inputs * size * size) ** -0.5).to(
        dtype
    )
    if layout == "last":  # as the library reads it
        order = (0, 1) if up == 1 else (1, 0)
        weight = weight.transpose(*order).contiguous(memory_format=torch.channels_last).transpose(*order)
    made: Arguments = {"x": x, "weight": weight, "style": draw(batch, inputs + 4)[:, 4:] * 0.5 + 1.0}
    made |= options
    if made["style"].dtype != parameters:
        made["style"] = made["style"].to(parameters)
    if energy:
        made["energy"] = weight_energy(weight).to(torch.promote_types(parameters, torch.float32))
    if up == 2:
        made["filter"] = (torch.tensor(taps, dtype=torch.float64, device="cpu") / sum(taps)).to(
            device, parameters
        )
    if noise:
        made["noise"], made["noise_weight"] = (
            draw(noise, 1, height * up, width * up),
            draw(channels if each else 1),
        )
    for name in vectors:
        made[name] = draw(channels) if name == "bias" else draw(batch, channels)
    return made


def _case(name: str, reason: str, shape: Shape, channels: int, size: int = 3, production: bool = False, **options: Any
          ) -> Case:  # fmt: skip
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, channels, size, **options
    )
    # For the compiler float16 and bfloat16 are the same work.
    dtypes = (torch.float32, torch.bfloat16) if production else (torch.float32, torch.float16, torch.bfloat16)
    return Case(name, make, reason, dtypes, production)


LAYER: Arguments = {"vectors": ("bias",), "noise": 1, "slope": 0.2, "act_gain": math.sqrt(2.0)}
FIRST: Arguments = LAYER | {"vectors": ("bias", "post_scale"), "up": 2}
LOADED: Arguments = {"energy": True, "beside": torch.float32}  # as a network that was loaded keeps it

CASES = (
    _case("same", "a layer that keeps the size; odd sides and channels", (2, 5, 3, 7), 6, **LAYER),
    _case("up", "a layer that doubles it, and multiplies the next one's style in", (2, 6, 3, 4), 5, **FIRST),
    _case("colours", "a layer that makes colours: 1x1, no demodulation", (2, 8, 4, 5), 3, 1, demodulate=False,
          vectors=("bias",)),
    _case("bare", "nothing behind the convolution; contiguous", (3, 4, 5, 2), 4, layout="first"),
    _case("scaled", "x carries the style already", (2, 4, 3, 3), 7, scaled=True, energy=True, **LAYER),
    _case("up_first", "the size doubled, contiguous, StyleGAN's filter of 3 taps", (1, 3, 5, 4), 4, layout="first",
          taps=(1.0, 2.0, 1.0), up=2, **LAYER),
    _case("up_pointwise", "a 1x1 kernel, doubled: between its pixels is only the filter", (1, 4, 3, 3), 3, 1, up=2),
    _case("long_filter", "a filter longer than the image", (1, 3, 2, 2), 2, taps=(1.0, 2.0, 5.0, 7.0, 4.0, 1.0), up=2),
    _case("wide_kernel", "a kernel of 5x5, of which most lies in the padding", (1, 3, 2, 3), 3, 5, noise=1, each=True),
    _case("pixel", "one pixel", (3, 4, 1, 1), 5, **LAYER),
    _case("one", "one channel, one pixel, doubled", (1, 1, 1, 1), 1, **FIRST),
    _case("many", "more channels than a step of the demodulation", (1, 520, 2, 2), 5, energy=True),
    _case("window", "rows and columns of a larger image", (2, 3, 4, 3), 4, layout="window", noise=2, slope=0.2),
    _case("channels", "some channels of a larger image", (2, 6, 3, 4), 4, layout="channels", **LAYER),
    _case("loaded", "parameters in float32, as a network keeps them", (2, 8, 4, 4), 8, **LAYER, **LOADED),
    _case("eps", "an eps that shows", (2, 4, 3, 3), 4, eps=0.5),
    # StyleGAN2 at batch 1.
    _case("stylegan4", "latency: the first layer", (1, 512, 4, 4), 512, production=True, **LAYER, **LOADED),
    _case("stylegan8_up", "latency: the first that doubles", (1, 512, 4, 4), 512, production=True, **FIRST, **LOADED),
    _case("stylegan8", "latency: behind it, its input scaled", (1, 512, 8, 8), 512, production=True, scaled=True,
          **LAYER, **LOADED),
    _case("stylegan32_up", "512 channels to 32x32", (1, 512, 16, 16), 512, production=True, **FIRST, **LOADED),
    _case("stylegan256_up", "128 channels to 64 at 256x256", (1, 128, 128, 128), 64, production=True, **FIRST,
          **LOADED),
    _case("stylegan256", "64 channels at 256x256", (1, 64, 256, 256), 64, production=True, scaled=True, **LAYER,
          **LOADED),
    # A small network, of 32x32 pixels, at batch 32.
    _case("small32", "64 channels at 32x32, a batch of 32", (32, 64, 32, 32), 64, production=True, scaled=True, **LAYER,
          **LOADED),
)  # fmt: skip


def exact(**named: Any) -> tuple[Tensor]:
    """The operation in float64 from the arguments as they were rounded."""
    return (modulated_conv(**{name: double(value) for name, value in named.items()}),)


def magnitude(named: Arguments) -> Tensor:
    """The operation on absolute values, with the factors of demodulation that it has; float64."""
    positive = {
        name: double(value).abs() if isinstance(value, Tensor) else value for name, value in named.items()
    }
    # The factors depend on squares only.
    positive |= {"slope": 1.0, "act_gain": abs(named.get("act_gain", 1.0))}
    return modulated_conv(**positive) * max(1.0, abs(named.get("slope", 1.0)))


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor]:
    """One rounding to y's type, the products' sum in float32, and the roundings of what is handed on in x's type.

    Scaled activations and the convolution's result are stored in x's type: two roundings of it, each at most of the
    magnitude. A factor of demodulation errs by half of what a sum of I positive terms does, relative to it: at most
    log2 I + 4 roundings where it is summed as a tree, I / 2 where it is not, of which the sum's 8 hold what is not
    of one sign; the filter and the epilogue as `upfirdn` has them.
    """
    x, weight, filter = named["x"], named["weight"], named.get("filter")
    terms = weight[0].numel()
    roundings = accumulated(x, terms) + 8.0 + math.log2(weight.shape[1]) + 4.0
    roundings += 0.0 if filter is None else 4.0 * len(filter)
    if x.element_size() == 2:
        roundings += 2.0 * UNIT_ROUNDOFF[x.dtype] / UNIT_ROUNDOFF[torch.float32]
    return (rounding_bound(outputs[0], magnitude(named), x.dtype, roundings),)


def bytes_moved(**named: Any) -> int:
    """Least traffic: everything read once, y written once."""
    tensors = [value for value in named.values() if isinstance(value, Tensor)]
    x = named["x"]
    count = math.prod(output_shape(x, named["weight"], named.get("up", 1)))
    return sum(t.numel() * t.element_size() for t in tensors) + count * x.element_size()


def flops(**named: Any) -> int:
    """Products and sums of the convolution, those in the padding too; of the filter; one for all that is multiplied or
    added to an activation or a factor."""
    x, weight, filter = named["x"], named["weight"], named.get("filter")
    up = named.get("up", 1)
    shape = output_shape(x, weight, up)
    count = 2 * weight.numel() * x.shape[0] * x.shape[2] * x.shape[3]
    if not named.get("scaled", False):
        count += x.numel()
    demodulate = named.get("demodulate", True)
    if demodulate:
        count += 3 * x.shape[0] * weight.shape[0] * weight.shape[1]
    each = demodulate + sum(named.get(name) is not None for name in ("bias", "post_scale"))
    each += 2 * (named.get("noise") is not None) + 2 * (named.get("slope", 1.0) != 1.0)
    each += named.get("act_gain", 1.0) != 1.0
    each += 0 if filter is None else 2 * (2 * len(filter) - 1)
    return count + each * math.prod(shape)
