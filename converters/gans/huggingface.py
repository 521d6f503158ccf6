"""BigGAN-deep of pytorch-pretrained-BigGAN (Hugging Face): a folder with config.json and pytorch_model.bin.

embeddings.weight                   [z_dim, classes], a linear map of one-hot vectors
generator.gen_z                     of [z, embedding], to pixels of NHWC images
generator.layers.i.conv_0 .. conv_3 weight_orig, weight_u, weight_v of torch.nn.utils.spectral_norm, bias
generator.layers.i.bn_0 .. bn_3     scale, offset; running_means, running_vars [n_stats, C]
generator.layers.i.snconv1x1_theta  self-attention
generator.bn, generator.conv_to_rgb the end; of its channels the first three are the image
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen.checkpoint import CONFIG_FILE
from fastgen.config import bounded, from_dict, one_of
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.gan.biggan import BigGANDeepConfig

from ..base import Report, read_json
from ..flows.assumed import Assumed, Table
from ..flows.source import Result, Source, converter
from ..flows.state import State

SUPPORTED = "BigGAN with stages of two blocks, the second of which doubles the image's sides"
ASSUMED: Table = {"eps": Assumed(1e-4, source="config.py: BigGANConfig(eps)")}
ATTENTION = {"theta": "theta", "phi": "phi", "g": "g", "o_conv": "o"}
DEPTH, BOTTOM, IMAGE = 2, 4, 3
MAX_LAYERS = 20


@dataclass(frozen=True)
class PretrainedOptions:
    """eps: of all norms. interpolation: of standing statistics between two truncations: "reversed", as that project's
    code computes it, where the farther set has the larger weight; "linear", as it was surely meant.
    """

    eps: float = bounded(1e-12, 1.0, default=ASSUMED["eps"].value)
    interpolation: str = one_of("reversed", "linear", default="reversed")


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of its model."""
    found = set(names)
    return {
        "embeddings.weight",
        "generator.bn.running_means",
        "generator.layers.0.bn_0.running_means",
    } <= found


def beside(path: Path) -> Mapping[str, Any]:
    """What config.json says that tensors do not. Raises CheckpointError."""
    file = path / CONFIG_FILE
    if not path.is_dir() or not file.is_file():
        return {}
    config = read_json(file)
    if "layers" in config:
        ups = [bool(layer[0]) for layer in config["layers"] if isinstance(layer, list) and len(layer) == 3]
        if ups != [False, True] * (len(config["layers"]) // 2):
            raise ConfigError(f"layers double the image elsewhere; supported: {SUPPORTED}", argument=file)
    return {"eps": config["eps"]} if "eps" in config else {}


def read(state: State, options: PretrainedOptions, report: Report) -> Result:
    """The generator."""
    layers = state.count("generator.layers", MAX_LAYERS)
    blocks = [i for i in range(layers) if state.has(f"generator.layers.{i}.bn_0.running_means")]
    if len(blocks) % DEPTH:
        raise ConfigError(f"has {len(blocks)} blocks; supported: {SUPPORTED}", argument=state.where)
    attention = {}  # by stage, its place in the list
    for i in (n for n in range(layers) if n not in blocks):
        if i % DEPTH or not i:
            raise ConfigError(
                f"generator.layers.{i}: self-attention within a stage; supported: {SUPPORTED}",
                argument=state.where,
            )
        attention[i // DEPTH - 1] = i
    means = [state.peek(f"generator.layers.{i}.bn_0.running_means") for i in blocks]
    levels, channels = state.peek("generator.bn.running_means").shape
    widths = [*(m.shape[1] for m in means[::DEPTH]), channels]
    if any(width % channels for width in widths) or widths[0] != 16 * channels:
        raise CheckpointError(f"has channels {widths}; is the file whole?", argument=state.where)
    embedding = state.take("embeddings.weight", None, None)  # [z, classes]
    z_dim = len(embedding)
    # [z, embedding] there, [embedding, z] here.
    order = [*range(z_dim, 2 * z_dim), *range(z_dim)]
    tensors = {"embedding.weight": embedding.t()}
    first = _baked(state, "generator.gen_z").unflatten(0, (BOTTOM, BOTTOM, -1))
    tensors["first.weight"] = first.permute(2, 0, 1, 3).flatten(0, 2)[:, order]
    bias = state.take("generator.gen_z.bias", None).unflatten(0, (BOTTOM, BOTTOM, -1))
    tensors["first.bias"] = bias.permute(2, 0, 1).flatten()
    for ours, i in enumerate(blocks):
        for n in range(4):
            theirs, conv = f"generator.layers.{i}", f"blocks.{ours}.conv{n + 1}"
            tensors[f"{conv}.weight"] = _baked(state, f"{theirs}.conv_{n}")
            tensors[f"{conv}.bias"] = state.take(f"{theirs}.conv_{n}.bias", None)
            norm = f"blocks.{ours}.norm{n + 1}"
            tensors[f"{norm}.gain.weight"] = _baked(state, f"{theirs}.bn_{n}.scale")[:, order]
            tensors[f"{norm}.shift.weight"] = _baked(state, f"{theirs}.bn_{n}.offset")[:, order]
            _statistics(state, f"{theirs}.bn_{n}", norm, tensors)
    for stage, i in attention.items():
        for theirs, ours_ in ATTENTION.items():
            weight = _baked(state, f"generator.layers.{i}.snconv1x1_{theirs}")
            tensors[f"attention.{stage}.{ours_}.weight"] = weight
        tensors[f"attention.{stage}.gamma"] = state.take(f"generator.layers.{i}.gamma").reshape(())
    for name in ("weight", "bias"):
        tensors[f"norm.{name}"] = state.take(f"generator.bn.{name}", channels)
    _statistics(state, "generator.bn", "norm", tensors)
    tensors["last.weight"] = _baked(state, "generator.conv_to_rgb")[:IMAGE]
    tensors["last.bias"] = state.take("generator.conv_to_rgb.bias", channels)[:IMAGE]
    report.renamed.append(
        "spectral norms are divided out; of the last convolution's channels three are the image"
    )
    values = {
        "latent": z_dim,
        "shared": z_dim,
        "out_channels": IMAGE,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "bottom": BOTTOM,
        "attention": sorted(attention),
        "num_classes": embedding.shape[1],
        "spectral_norm": False,
        "eps": options.eps,
        "top_eps": options.eps,
        "levels": levels,
        "reversed_levels": options.interpolation == "reversed",
        "depth": DEPTH,
    }
    config = from_dict(BigGANDeepConfig, values, state.where)
    # What its `truncated_noise_sample` draws.
    settings = {"truncation": 1.0, "truncation_law": "rescale"}
    return Result("biggan_deep", config, tensors, settings)


def _statistics(state: State, theirs: str, ours: str, tensors: dict[str, Tensor]) -> None:
    for name in ("mean", "var"):
        tensors[f"{ours}.running_{name}"] = state.take(f"{theirs}.running_{name}s", None, None)


def _baked(state: State, name: str) -> Tensor:
    """The weight divided by its spectral norm, as torch.nn.utils.spectral_norm does in evaluation mode."""
    if not state.has(f"{name}.weight_orig"):
        return state.take(f"{name}.weight")
    original = state.take(f"{name}.weight_orig")
    u = state.take(f"{name}.weight_u", len(original)).double()
    if state.has(f"{name}.weight_v"):
        v = state.take(f"{name}.weight_v").double()
        matrix = original.double().flatten(1)
        state.drop(f"{name}.weight")
        return (original.double() / torch.dot(u, matrix @ v)).to(original.dtype)
    return state.take(f"{name}.weight")  # files of PyTorch 1.0 hold the quotient, and no v


CONVERTER = converter(
    Source(
        name="pytorch-pretrained-biggan",
        about="BigGAN-deep of Hugging Face's pytorch-pretrained-BigGAN (config.json, pytorch_model.bin)",
        supported=SUPPORTED,
        options=PretrainedOptions,
        recognises=recognises,
        read=read,
        beside=beside,
        family="gan",
        part="generator",
    )
)
