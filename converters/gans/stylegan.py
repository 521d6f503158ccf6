"""StyleGAN as rosinality/style-based-gan-pytorch has it: train_step-N.model, or a state dict of its generator.

style.1, style.3, ...                    linear.weight_orig, linear.bias: the mapping network
generator.progression.I.conv1            .input, the constant, of I = 0; .1.conv, a convolution behind an upsampling,
                                         or .0.weight [in, out, 3, 3], .0.bias, both in one; and a filter behind it
generator.progression.I.conv2            .conv.weight_orig, .conv.bias
generator.progression.I.noise1, noise2   .weight_orig [1, C, 1, 1]
generator.progression.I.adain1, adain2   .style.linear
generator.to_rgb.I.conv                  of the resolution 4 * 2^I

A training file has the networks "generator" and "g_running", the average, with blocks for 1024 pixels whatever the size
that was trained. Weights are multiplied by sqrt(2 / fan in) there, also those of noise and styles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.config import bounded, from_dict
from fastgen.errors import ConfigError
from fastgen.models.gan.stylegan.mapping import MAX_SIDE, MAX_WIDTHS
from fastgen.models.gan.stylegan.stylegan import StyleGANConfig

from ..base import Report
from ..flows.assumed import Assumed, Table
from ..flows.source import Result, Source, converter
from ..flows.state import State, precisely
from .styles import fixed_noise, mean_style, taps_of

SUPPORTED = "StyledGenerator of model.py, at one of its resolutions"
BOTTOM = 4
MAPPING_LR = 0.01  # train.py: the group of the mapping network, lr * 0.01
PSI = 0.7  # generate.py: style_weight
ASSUMED: Table = {
    "mean_samples": Assumed(10 * 1024, source="generate.py: get_mean_style"),
    "eps": Assumed(1e-5, ("torch.nn.InstanceNorm2d:eps",)),
}


@dataclass(frozen=True)
class StyleGANOptions:
    """size: height and width of the images (generate.py --size); None: of the finest resolution that was trained, whose
    strengths of noise are no longer 0. mean_samples: of which the mean of w is taken. eps: of AdaIN.
    """

    size: int | None = bounded(BOTTOM, MAX_SIDE, default=None)
    mean_samples: int = bounded(1, 10_000_000, default=ASSUMED["mean_samples"].value)
    eps: float = bounded(1e-12, 1.0, default=ASSUMED["eps"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of its generator."""
    return {"generator.progression.0.conv1.input", "style.1.linear.weight_orig"} <= set(names)


def read(state: State, options: StyleGANOptions, report: Report) -> Result:
    """The generator."""
    blocks = state.count("generator.progression", MAX_WIDTHS)
    last = _last(state, blocks, options, report)
    tensors = _mapping(state)
    widths = [_block(state, i, tensors) for i in range(last + 1)]
    weight = state.take(f"generator.to_rgb.{last}.conv.weight_orig", None, widths[-1], 1, 1)
    tensors["synthesis.to_rgb.weight"] = _times(weight, math.sqrt(2))
    tensors["synthesis.to_rgb.bias"] = state.take(f"generator.to_rgb.{last}.conv.bias", len(weight))
    others = [f"generator.progression.{i}." for i in range(last + 1, blocks)]
    others += [f"generator.to_rgb.{i}." for i in range(blocks) if i != last]
    unused = [name for name in state.left if name.startswith(tuple(others))]
    state.drop(*unused)
    if unused:
        report.ignored.append(f"{len(unused)} tensors of other resolutions than {BOTTOM << last} pixels")
    w_dim = len(tensors["mapping.layers.0.bias"])
    values = {
        "latent": tensors["mapping.layers.0.weight"].shape[1],
        "w_dim": w_dim,
        "size": BOTTOM << last,
        "out_channels": len(weight),
        "widths": widths,
        "mapping_layers": sum(name.endswith(".bias") for name in tensors if name.startswith("mapping.")),
        "mapping_lr": MAPPING_LR,
        "bias_before_blur": True,
        "shared_noise": True,
        "eps": options.eps,
    }
    config = from_dict(StyleGANConfig, values, state.where)
    kind = weight.dtype
    for i in range(last + 1):
        tensors[f"noises.{i}"] = fixed_noise(BOTTOM << i, i, kind)
    tensors["w_mean"] = mean_style(config, tensors, options.mean_samples)
    report.assumed.append(
        f"truncation_psi = {PSI} (generate.py: style_weight), noise_mode = random; noise_mode const shows noise that "
        "was drawn when the model was converted"
    )
    return Result("stylegan", config, tensors, {"truncation_psi": PSI, "noise_mode": "random"})


def _last(state: State, blocks: int, options: StyleGANOptions, report: Report) -> int:
    """The block that the images come from. Raises ConfigError."""
    if options.size is not None:
        last = round(math.log2(options.size / BOTTOM))
        if BOTTOM << last != options.size or last >= blocks:
            sizes = ", ".join(str(BOTTOM << i) for i in range(blocks))
            raise ConfigError(f"is {options.size}; there are {sizes}", argument=f"{state.where}: size")
        return last
    trained = [i for i in range(blocks) if _trained(state, i)]
    if not trained:
        raise ConfigError(
            "its noise has no strength at any resolution, so that the weights do not say which was trained: give it, "
            "assume={'size': 256} (--assume size=256)",
            argument=state.where,
        )
    report.assumed[:] = [line for line in report.assumed if not line.startswith("size = ")]
    report.assumed.append(
        f"size = {BOTTOM << trained[-1]}, the finest resolution whose noise was trained; "
        "assume={'size': ...} (--assume size=...) says otherwise"
    )
    return trained[-1]


def _trained(state: State, i: int) -> bool:
    names = [f"generator.progression.{i}.noise{n}.weight_orig" for n in (1, 2)]
    return any(bool(state.peek(name).ne(0).any()) for name in names)


def _mapping(state: State) -> dict[str, Tensor]:
    tensors = {}
    for i, n in enumerate(state.numbers("style")):
        # There the root of 2 is in the weight, here behind the activation, for the bias as well.
        weight = state.take(f"style.{n}.linear.weight_orig", None, None)
        tensors[f"mapping.layers.{i}.weight"] = _times(weight, 1 / MAPPING_LR)
        bias = state.take(f"style.{n}.linear.bias", len(weight))
        tensors[f"mapping.layers.{i}.bias"] = _times(bias, math.sqrt(0.5) / MAPPING_LR)
    return tensors


def _block(state: State, i: int, tensors: dict[str, Tensor]) -> int:
    """The two layers of a resolution; returns its channels."""
    theirs, ours = f"generator.progression.{i}", "synthesis.layers"
    weight, bias = _convolution(state, f"{theirs}.conv2")
    width = len(weight)
    tensors[f"{ours}.{2 * i + 1}.conv.weight"], tensors[f"{ours}.{2 * i + 1}.bias"] = weight, bias
    if i == 0:
        tensors["synthesis.const"] = state.take(f"{theirs}.conv1.input", 1, width, BOTTOM, BOTTOM)
        tensors[f"{ours}.0.bias"] = torch.zeros_like(bias)
    else:
        fused = state.has(f"{theirs}.conv1.0.weight")
        if fused:
            # Four times smaller, mirrored: a transposed convolution by sums of neighbours is one behind an upsampling.
            weight = state.take(f"{theirs}.conv1.0.weight", None, width, 3, 3)
            weight = weight.transpose(0, 1).flip(2, 3) / 4
            bias = state.take(f"{theirs}.conv1.0.bias", width)
        else:
            weight, bias = _convolution(state, f"{theirs}.conv1.1")
        tensors[f"{ours}.{2 * i}.conv.weight"], tensors[f"{ours}.{2 * i}.bias"] = weight, bias
        _check_blur(state, f"{theirs}.conv1.{1 if fused else 2}")
    for n in (1, 2):
        layer = f"{ours}.{2 * i + n - 1}"
        strength = state.take(f"{theirs}.noise{n}.weight_orig", 1, width, 1, 1).flatten()
        tensors[f"{layer}.noise_strength"] = _times(strength, math.sqrt(2 / width))
        style = state.take(f"{theirs}.adain{n}.style.linear.weight_orig", 2 * width, None)
        tensors[f"{layer}.affine.weight"] = _times(style, math.sqrt(2))
        tensors[f"{layer}.affine.bias"] = state.take(f"{theirs}.adain{n}.style.linear.bias", 2 * width)
    return width


def _convolution(state: State, name: str) -> tuple[Tensor, Tensor]:
    weight = state.take(f"{name}.conv.weight_orig", None, None, 3, 3)
    return weight, state.take(f"{name}.conv.bias", len(weight))


def _check_blur(state: State, name: str) -> None:
    """Take the filter. Raises ConfigError for another than the one of the network's configuration."""
    for part in ("weight", "weight_flip"):
        taps = taps_of(state.take(f"{name}.{part}", None, 1, None, None)[0, 0], f"{state.where}: {name}")
        if taps != (1, 2, 1):
            raise ConfigError(f"has taps {taps}; supported: 1, 2, 1", argument=f"{state.where}: {name}")


def _times(tensor: Tensor, factor: float) -> Tensor:
    return precisely(lambda x: x * factor, tensor)


CONVERTER = converter(
    Source(
        name="style-based-gan-pytorch",
        about="StyleGAN of rosinality/style-based-gan-pytorch: a training file, or a state dict of its generator",
        supported=SUPPORTED,
        options=StyleGANOptions,
        recognises=recognises,
        read=read,
        family="gan",
        part="generator",
    )
)
