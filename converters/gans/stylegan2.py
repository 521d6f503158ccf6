"""StyleGAN2 as rosinality/stylegan2-pytorch has it: a training file, or one of its convert_weight.py.

style.1, style.2, ...             weight, bias: the mapping network
input.input                       the constant
conv1, convs.0, convs.1, ...      .conv.weight [1, out, in, 3, 3], .conv.modulation, .noise.weight [1], .activate.bias
to_rgb1, to_rgbs.0, ...           .conv.weight [1, 3, in, 1, 1], .conv.modulation, .bias [1, 3, 1, 1]
noises.noise_0, ...               fixed noise
*.blur.kernel, *.upsample.kernel  the filter

Beside "g_ema" a file has "g", "d", and "latent_avg" where convert_weight.py wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fastgen.config import bounded, from_dict
from fastgen.errors import CheckpointError
from fastgen.models.gan.stylegan.mapping import MAX_WIDTHS
from fastgen.models.gan.stylegan.stylegan2 import StyleGAN2Config

from ..base import Report
from ..flows.assumed import Assumed, Table
from ..flows.source import Result, Source, converter, same, without
from ..flows.state import State
from .styles import mean_style, taps_of

SUPPORTED = "Generator of model.py"
ASSUMED: Table = {
    "lr_mlp": Assumed(0.01, source="model.py: Generator(lr_mlp)"),
    "truncation_mean": Assumed(4096, source="generate.py: --truncation_mean"),
}


@dataclass(frozen=True)
class StyleGAN2Options:
    """lr_mlp: relative learning rate of the mapping network, a factor of its weights. truncation_mean: of how many z
    the mean of w is taken, where the file has no latent_avg.
    """

    lr_mlp: float = bounded(1e-6, 100.0, default=ASSUMED["lr_mlp"].value)
    truncation_mean: int = bounded(1, 10_000_000, default=ASSUMED["truncation_mean"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of its generator."""
    return {"input.input", "conv1.conv.modulation.weight", "to_rgb1.bias", "style.1.weight"} <= set(names)


def read(state: State, options: StyleGAN2Options, report: Report) -> Result:
    """The generator."""
    tensors: dict[str, Tensor] = {}
    for i, n in enumerate(state.numbers("style")):
        for part in ("weight", "bias"):
            tensors[f"mapping.layers.{i}.{part}"] = state.take(f"style.{n}.{part}")
    layers = len(tensors) // 2
    const = tensors["synthesis.const"] = state.take("input.input", 1, None, None, None)
    stages = state.count("to_rgbs", MAX_WIDTHS)
    convs = ["conv1", *(f"convs.{i}" for i in range(state.count("convs", 2 * MAX_WIDTHS)))]
    if len(convs) != 2 * stages + 1:
        raise CheckpointError(
            f"has {len(convs)} convolutions and {stages + 1} images; is the file whole?", argument=state.where
        )
    for i, theirs in enumerate(convs):
        ours = f"synthesis.layers.{i}"
        tensors[f"{ours}.weight"] = state.take(f"{theirs}.conv.weight", 1, None, None, 3, 3)[0]
        tensors[f"{ours}.noise_strength"] = state.take(f"{theirs}.noise.weight", 1)[0]
        tensors[f"{ours}.bias"] = state.take(f"{theirs}.activate.bias", None)
        _modulation(state, theirs, ours, tensors)
        noise = state.take(f"noises.noise_{i}", 1, 1, None, None)
        tensors[f"noises.{i}"] = noise
    for i, theirs in enumerate(["to_rgb1", *(f"to_rgbs.{i}" for i in range(stages))]):
        ours = f"synthesis.to_rgb.{i}"
        tensors[f"{ours}.weight"] = state.take(f"{theirs}.conv.weight", 1, None, None, 1, 1)[0]
        tensors[f"{ours}.bias"] = state.take(f"{theirs}.bias", 1, None, 1, 1).flatten()
        _modulation(state, theirs, ours, tensors)
    kernels = [name for name in state.left if name.endswith(".kernel")]
    blurs = [taps_of(state.take(name), f"{state.where}: {name}") for name in kernels]
    values = {
        "latent": tensors["mapping.layers.0.weight"].shape[1],
        "w_dim": len(tensors[f"mapping.layers.{layers - 1}.bias"]),
        "size": const.shape[2] << stages,
        "out_channels": len(tensors["synthesis.to_rgb.0.bias"]),
        "widths": [len(tensors[f"synthesis.layers.{2 * i}.bias"]) for i in range(stages + 1)],
        "mapping_layers": layers,
        "mapping_lr": options.lr_mlp,
        "blur": same(blurs, "the filter", state.where) if blurs else StyleGAN2Config().blur,
    }
    config = from_dict(StyleGAN2Config, values, state.where)
    if state.has("latent_avg"):
        without(options, report, "the file has latent_avg", "truncation_mean")
        tensors["w_mean"] = state.take("latent_avg").reshape(-1)
    else:
        tensors["w_mean"] = mean_style(config, tensors, options.truncation_mean)
    report.assumed.append("truncation_psi = 1, noise_mode = random (generate.py: --truncation)")
    return Result("stylegan2", config, tensors, {"truncation_psi": 1.0, "noise_mode": "random"})


def _modulation(state: State, theirs: str, ours: str, tensors: dict[str, Tensor]) -> None:
    for part in ("weight", "bias"):
        tensors[f"{ours}.affine.{part}"] = state.take(f"{theirs}.conv.modulation.{part}")


CONVERTER = converter(
    Source(
        name="stylegan2-pytorch",
        about="StyleGAN2 of rosinality/stylegan2-pytorch: a training file, or one of its convert_weight.py",
        supported=SUPPORTED,
        options=StyleGAN2Options,
        recognises=recognises,
        read=read,
        family="gan",
        part="generator",
        beside_weights=("latent_avg",),
    )
)
