"""StyleGAN2 of NVlabs' stylegan2-ada-pytorch and stylegan3: network-*.pkl, by their torch_utils.persistence.

mapping.embed, fc0, fc1, ...       weight, bias; w_avg
synthesis.bR                       the resolution R: const [C, 4, 4] of b4; conv0 (which upsamples), conv1, torgb
synthesis.bR.convN                 affine, weight, bias, noise_const [R, R], noise_strength, resample_filter

The pickle is read by `converters.restricted`: weights, and attributes that are plain values. StyleGAN3's own generator
has other layers (SynthesisInput, filtered nonlinearities) and is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen.config import bounded, from_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.gan.stylegan.stylegan2 import StyleGAN2Config

from .. import restricted
from ..base import Converted, Converter, Report
from ..flows.assumed import Assumed, Table
from ..flows.source import Result, Source, convert, same
from ..flows.state import State
from ..restricted import Node
from ..weights import Found, sha256
from .styles import taps_of

NAME = "nvlabs"
SUPPORTED = (
    "generators of StyleGAN2 (training.networks of stylegan2-ada-pytorch, training.networks_stylegan2 of stylegan3) "
    "with the skip architecture, LeakyReLU and 3x3 filters"
)
ASSUMED: Table = {"eps": Assumed(1e-8, source="networks.py: modulated_conv2d")}
NETWORKS = ("G_ema", "G", "D")
# Conv2dLayer is of the architecture resnet, which is refused by that name.
KINDS = {
    "Generator",
    "MappingNetwork",
    "SynthesisNetwork",
    "SynthesisBlock",
    "SynthesisLayer",
    "ToRGBLayer",
} | {
    "FullyConnectedLayer",
    "Conv2dLayer",
}
BOTTOM = 4


@dataclass(frozen=True)
class NVlabsOptions:
    """eps: added to the sum of squares that a modulated filter is divided by."""

    eps: float = bounded(1e-12, 1.0, default=ASSUMED["eps"].value)


def detect(path: Path) -> bool:
    """See ``Converter``: by the names of its classes, whatever the file is called."""
    return path.is_file() and restricted.marked(path) is not None


def read(path: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
    """See ``Converter``. variant: "G_ema", the average and the default, or "G"."""
    if restricted.marked(path) == restricted.OLD_MARK:
        raise CheckpointError(
            "is a pickle of TensorFlow's StyleGAN; supported: PyTorch's, which legacy.py of stylegan2-ada-pytorch "
            "makes of it",
            argument=path,
        )
    content = restricted.read(path)
    held = [name for name in NETWORKS if content.get(name) is not None]
    chosen = variant or next((name for name in ("G_ema", "G") if name in held), None)
    if chosen is None:
        raise CheckpointError(f"holds no generator, but {', '.join(content) or 'nothing'}", argument=path)
    if chosen not in held or chosen == "D":
        there = ", ".join(name for name in held if name != "D")
        raise ConfigError(f"{chosen!r} was asked for, and there are: {there}", argument="variant")
    node = restricted.tree(content[chosen], path)
    where = f"{path}: {chosen}"
    check(node, where)
    report = Report()
    report.renamed.append(f"{'averaged weights (EMA)' if chosen == 'G_ema' else 'weights'} of {chosen}")
    if others := [name for name in content if name != chosen]:
        report.ignored.append(f"{', '.join(map(str, others[:8]))}: not the weights of {chosen}")
    origin: dict[str, Any] = {"weights": [path.name], "sha256": sha256(Found((path,)))}
    if variant is not None:
        origin["variant"] = variant

    def generator(state: State, options: NVlabsOptions, report: Report) -> Result:
        return _generator(node, state, options, report)

    source = dataclasses.replace(SOURCE, read=generator)
    return convert(source, node.all_tensors(), where, assume or {}, {}, report, origin)


def check(node: Node, where: str) -> None:
    """Raise ConfigError unless `node` is a generator of StyleGAN2."""
    kinds = {each.kind for _, each in node.walk()}
    if {"SynthesisInput", "MappingNetwork"} <= kinds:
        raise ConfigError(f"is a generator of StyleGAN3; supported: {SUPPORTED}", argument=where)
    unknown = sorted(kinds - KINDS)
    if node.kind != "Generator" or unknown:
        named = node.kind if node.kind != "Generator" else ", ".join(unknown[:4])
        raise ConfigError(f"has the class {named[:80]!r}; supported: {SUPPORTED}", argument=where)


def _generator(node: Node, state: State, options: NVlabsOptions, report: Report) -> Result:
    where = state.where
    layers = dict(node.walk())
    mapping, synthesis = _child(layers, "mapping", where), _child(layers, "synthesis", where)
    size = _whole(synthesis, "img_resolution", where)
    blocks = [name for name in synthesis.children if name.startswith("b")]
    sides = [BOTTOM << i for i in range(len(blocks))]
    if sorted(blocks) != sorted(f"b{side}" for side in sides) or sides[-1] != size:
        raise CheckpointError(f"has blocks {', '.join(blocks)} for {size} pixels", argument=where)
    each = [_child(layers, f"synthesis.b{side}", where) for side in sides]
    _equal(each, "architecture", "skip", where)
    convs = [layer for name, layer in layers.items() if layer.kind == "SynthesisLayer"]
    rgbs = [layer for name, layer in layers.items() if layer.kind == "ToRGBLayer"]
    _equal(convs, "activation", "lrelu", where)
    for name, layer in layers.items():
        if layer.kind == "FullyConnectedLayer":
            of_mapping = name.startswith("mapping.fc")
            _equal([layer], "activation", "lrelu" if of_mapping else "linear", f"{where}: {name}")
    tensors: dict[str, Tensor] = {}
    count = _whole(mapping, "num_layers", where)
    z_dim, w_dim = (_whole(mapping, name, where) for name in ("z_dim", "w_dim"))
    classes = _whole(mapping, "c_dim", where)
    if not z_dim:
        raise ConfigError(f"takes no z; supported: {SUPPORTED}", argument=where)
    if classes:
        _linear(state, "mapping.embed", "mapping.embedding", tensors)
        if len(tensors["mapping.embedding.bias"]) != w_dim:
            raise ConfigError(
                f"embeds labels as {len(tensors['mapping.embedding.bias'])} numbers; supported: w_dim, {w_dim}",
                argument=where,
            )
    for i in range(count):
        _linear(state, f"mapping.fc{i}", f"mapping.layers.{i}", tensors)
    if any(len(tensors[f"mapping.layers.{i}.bias"]) != w_dim for i in range(count)):
        raise ConfigError(f"has layer_features; supported: w_dim, {w_dim}", argument=where)
    lr = same(
        [_number(_child(layers, f"mapping.fc{i}", where), "bias_gain", where) for i in range(count)],
        "lr_multiplier",
        where,
    )
    tensors["synthesis.const"] = state.take("synthesis.b4.const", None, BOTTOM, BOTTOM)[None]
    names = ["b4.conv1"] + [f"b{side}.conv{n}" for side in sides[1:] for n in (0, 1)]
    silent = []
    for i, name in enumerate(names):
        side = int(name[1:].split(".")[0])
        theirs, ours = f"synthesis.{name}", f"synthesis.layers.{i}"
        _linear(state, f"{theirs}.affine", f"{ours}.affine", tensors)
        weight = tensors[f"{ours}.weight"] = state.take(f"{theirs}.weight", None, None, 3, 3)
        tensors[f"{ours}.bias"] = state.take(f"{theirs}.bias", len(weight))
        if state.has(f"{theirs}.noise_const"):
            noise = state.take(f"{theirs}.noise_const", side, side)
            tensors[f"{ours}.noise_strength"] = state.take(f"{theirs}.noise_strength").reshape(())
        else:
            silent.append(name)
            noise = torch.zeros(side, side, dtype=weight.dtype, device="cpu")
            tensors[f"{ours}.noise_strength"] = torch.zeros((), dtype=weight.dtype, device="cpu")
        tensors[f"noises.{i}"] = noise[None, None]
    for i, side in enumerate(sides):
        theirs, ours = f"synthesis.b{side}.torgb", f"synthesis.to_rgb.{i}"
        _linear(state, f"{theirs}.affine", f"{ours}.affine", tensors)
        tensors[f"{ours}.weight"] = state.take(f"{theirs}.weight", None, None, 1, 1)
        tensors[f"{ours}.bias"] = state.take(f"{theirs}.bias", None)
    if state.has("mapping.w_avg"):
        tensors["w_mean"] = state.take("mapping.w_avg", w_dim)
    else:
        raise ConfigError("has no w_avg, the mean of w (w_avg_beta = None)", argument=where)
    # A layer that does not upsample has a filter, too, and does not use it.
    state.drop(*(f"synthesis.b{side}.conv1.resample_filter" for side in sides))
    filters = [name for name in state.left if name.endswith(".resample_filter")]
    taps = [taps_of(state.take(name), f"{where}: {name}") for name in filters]
    clamp = same([_clamp(layer, where) for layer in (*convs, *rgbs)], "conv_clamp", where)
    values = {
        "latent": z_dim,
        "w_dim": w_dim,
        "size": size,
        "out_channels": len(tensors["synthesis.to_rgb.0.bias"]),
        "widths": [len(tensors[f"synthesis.layers.{2 * i}.bias"]) for i in range(len(sides))],
        "mapping_layers": count,
        "mapping_lr": lr,
        "num_classes": classes or None,
        "blur": same(taps, "resample_filter", where),
        "eps": options.eps,
        "equalized": False,
        "clamp": clamp,
    }
    report.mapped += [f"conv_clamp = {clamp}", f"lr_multiplier = {lr}", "architecture = skip"]
    report.assumed.append("truncation_psi = 1, noise_mode = const (generate.py: --trunc, --noise-mode)")
    if silent:
        report.mapped.append(f"use_noise = False of {', '.join(silent)}: noise of strength 0")
    if half := [
        str(side) for side, block in zip(sides, each, strict=True) if block.attributes.get("use_fp16")
    ]:
        report.ignored.append(f"use_fp16 of {', '.join(half)} pixels: the engine's dtype says it")
    config = from_dict(StyleGAN2Config, values, where)
    settings = {"truncation_psi": 1.0, "noise_mode": "const"}
    return Result("stylegan2", config, tensors, settings)


def _linear(state: State, theirs: str, ours: str, tensors: dict[str, Tensor]) -> None:
    for part in ("weight", "bias"):
        tensors[f"{ours}.{part}"] = state.take(f"{theirs}.{part}")


def _child(layers: Mapping[str, Node], name: str, where: str) -> Node:
    if name not in layers:
        raise CheckpointError(f"{name} is missing; is the file whole?", argument=where)
    return layers[name]


def _attribute(node: Node, name: str, where: str) -> Any:
    if name not in node.attributes:
        raise CheckpointError(f"a {node.kind} without {name}", argument=where)
    return node.attributes[name]


def _whole(node: Node, name: str, where: str) -> int:
    value = _attribute(node, name, where)
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise CheckpointError(f"{name} is {value!r}, expected a whole number", argument=where)
    return value


def _number(node: Node, name: str, where: str) -> float:
    value = _attribute(node, name, where)
    if type(value) not in (int, float):
        raise CheckpointError(f"{name} is {value!r}, expected a number", argument=where)
    return float(value)


def _clamp(node: Node, where: str) -> float | None:
    return None if _attribute(node, "conv_clamp", where) is None else _number(node, "conv_clamp", where)


def _equal(nodes: list[Node], name: str, value: str, where: str) -> None:
    for node in nodes:
        if (found := _attribute(node, name, where)) != value:
            raise ConfigError(f"{name} is {str(found)[:40]!r}; supported: {SUPPORTED}", argument=where)


def _no_read(state: State, options: Any, report: Report) -> Result:
    raise AssertionError("a pickle's attributes are needed, too: `read` puts them in")


SOURCE = Source(
    name=NAME,
    about="StyleGAN2 of NVlabs' stylegan2-ada-pytorch and stylegan3: network-*.pkl, of which nothing is executed",
    supported=SUPPORTED,
    options=NVlabsOptions,
    recognises=lambda names: False,
    read=_no_read,
    family="gan",
    part="generator",
)
CONVERTER = Converter(name=NAME, about=SOURCE.about, detect=detect, read=read)
