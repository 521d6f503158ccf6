"""VAEs of YannDubs/disentangling-vae: model.pt beside specs.json, or NAME.pt beside NAME.json.

encoder.{conv1, conv2, conv3, [conv_64], lin1, lin2, mu_logvar_gen}    its last layer has means and log-variances in
turns decoder.{lin1, lin2, lin3, [convT_64], convT1, convT2, convT3}

The weights say all of the network; the file beside them says how they were trained, and is compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen.checkpoint import Part, Spec
from fastgen.config import to_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.vae.convolutional import ConvolutionalVAEConfig

from . import weights
from .base import Converted, Converter, Report, Tensors, read_json
from .flows.source import SUFFIXES
from .flows.state import State

NAME = "disentangling-vae"
SUPPORTED = "the Burgess model of disentangling-vae, of images of 32x32 or 64x64"
MODEL, SPECS = "model.pt", "specs.json"
# What the weights say, too; everything else in the file is of training.
OF_THE_NETWORK = ("img_size", "latent_dim", "model_type", "rec_dist")
DISTRIBUTIONS = ("bernoulli",)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of that VAE."""
    return {"encoder.conv1.weight", "encoder.mu_logvar_gen.weight", "decoder.convT3.weight"} <= set(names)


def detect(path: Path) -> bool:
    """See ``Converter``."""
    file = _file(path)
    if not file.is_file() or file.suffix not in SUFFIXES:
        return False
    try:
        return weights.hold(weights.Found((file,)), recognises)
    except (CheckpointError, OSError, ValueError):
        return False


def read(path: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
    """See ``Converter``."""
    if assume:
        raise ConfigError(
            f"the weights say everything themselves, leave out {', '.join(assume)}", argument="assume"
        )
    file = _file(path)
    report = Report(f"{file}: a VAE of {NAME} -> fastgen")
    found = weights.Found((file,))
    tensors = weights.open_weights(found, recognises, report, variant)
    state = State({name: tensors.get(name) for name in tensors.shapes}, tensors.where)
    config, named = _network(state)
    state.finish(SUPPORTED)
    _compare(file, config, report)
    report.renamed.append(f"{len(tensors.shapes)} tensors; means and log-variances stand behind each other")
    held = Tensors(
        {name: tuple(value.shape) for name, value in named.items()},
        named.__getitem__,
        tensors.where,
        {name: value.dtype for name, value in named.items()},
    )
    origin = {"converted_from": NAME, "weights": [file.name], "sha256": weights.sha256(found)}
    spec = Spec("vae", {"vae": Part("vae", to_dict(config))}, {}, origin)
    return Converted(spec, held, report)


def _file(path: Path) -> Path:
    return path / MODEL if os.path.isdir(path) else path  # False, too, where it may not be entered


def _network(state: State) -> tuple[ConvolutionalVAEConfig, dict[str, Tensor]]:
    """Configuration and tensors by our names. Raises CheckpointError for shapes that do not fit each other."""
    large = state.has("encoder.conv_64.weight")
    down = ["conv1", "conv2", "conv3", *(["conv_64"] if large else [])]
    up = [*(["convT_64"] if large else []), "convT1", "convT2", "convT3"]
    names = {f"encoder.{theirs}": f"encoder.convolutions.{2 * i}" for i, theirs in enumerate(down)}
    names |= {"encoder.lin1": "encoder.first.linear", "encoder.lin2": "encoder.rest.1"}
    names |= {
        "decoder.lin1": "decoder.first.linear",
        "decoder.lin2": "decoder.rest.1",
        "decoder.lin3": "decoder.rest.3",
    }
    names |= {f"decoder.{theirs}": f"decoder.rest.{6 + 2 * i}" for i, theirs in enumerate(up)}
    widths = [len(state.peek(f"encoder.{theirs}.weight")) for theirs in down]
    last = state.peek("encoder.mu_logvar_gen.weight")
    config = ConvolutionalVAEConfig(
        sample_size=(64, 64) if large else (32, 32),
        in_channels=state.peek("encoder.conv1.weight").shape[1],
        latents=len(last) // 2,
        channels=tuple(widths),
        hidden=(len(state.peek("encoder.lin1.weight")), len(state.peek("encoder.lin2.weight"))),
    )
    tensors = {
        f"vae.{ours}.{part}": state.take(f"{theirs}.{part}")
        for theirs, ours in names.items()
        for part in ("weight", "bias")
    }
    for part in ("weight", "bias"):
        value = state.take(f"encoder.mu_logvar_gen.{part}")
        tensors[f"vae.encoder.rest.3.{part}"] = torch.cat([value[0::2], value[1::2]])
    return config, tensors


def _compare(file: Path, config: ConvolutionalVAEConfig, report: Report) -> None:
    """What the file beside the weights says. Raises ConfigError where it is of another model."""
    places = [file.with_suffix(".json"), file.with_name(SPECS)]
    beside = next((place for place in places if place.is_file()), None)
    if beside is None:
        report.assumed.append(
            f"rec_dist = bernoulli: no {SPECS} beside the weights says how they were trained"
        )
        return
    given = read_json(beside)
    found = {
        "img_size": [config.in_channels, *config.sample_size],
        "latent_dim": config.latents,
        "model_type": "Burgess",
    }
    for name, value in found.items():
        if given.get(name, value) != value:
            raise ConfigError(f"{name} is {given[name]!r}, the weights are of {value!r}", argument=beside)
        report.mapped.append(f"{name} = {value}")
    kind = given.get("rec_dist", "bernoulli")
    if kind not in DISTRIBUTIONS:
        raise ConfigError(
            f"rec_dist is {kind!r}, whose loss is of no distribution here; supported: {', '.join(DISTRIBUTIONS)}",
            argument=beside,
        )
    report.mapped.append(f"rec_dist = {kind}")
    rest = [name for name in given if name not in OF_THE_NETWORK]
    if rest:
        report.ignored.append(f"{', '.join(sorted(rest))}: of training")


CONVERTER = Converter(
    name=NAME,
    about=f"VAEs of {NAME}: model.pt beside specs.json",
    detect=detect,
    read=read,
    recognises=recognises,
    files=(SPECS,),
    downloads=lambda path, variant: [[MODEL]],
)
