"""``AutoencoderKL`` folders (config.json, diffusion_pytorch_model[.VARIANT].safetensors or .bin) to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastgen.architectures import part_config
from fastgen.checkpoint import CONFIG_FILE, Part, Spec
from fastgen.config import from_dict, to_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.vae.autoencoder_kl import AutoencoderKLConfig

from .. import weights
from ..base import Converted, Report, Tensors, read_json, write_json
from .unet import our_names, their_name

CLASS = "AutoencoderKL"
STEM = "diffusion_pytorch_model"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def is_one(folder: Path) -> bool:
    """Whether `folder` holds an AutoencoderKL by itself."""
    try:
        return read_json(folder / CONFIG_FILE).get("_class_name") == CLASS
    except CheckpointError:
        return False


def read(folder: Path, variant: str | None, assume: Mapping[str, Any] | None) -> Converted:
    """The model in `folder`. Raises CheckpointError or ConfigError that names file and option."""
    if assume:
        raise ConfigError(
            f"{folder} says everything itself, leave out {', '.join(assume)}", argument="assume"
        )
    raw, where = read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE)
    version = raw.get("_diffusers_version")
    report = Report(f"{CLASS} of diffusers {version or '(no version)'} -> fastgen")
    config = _config(raw, where, report)
    found = weights.find(folder, (STEM, *weights.STEMS), variant)
    tensors = weights.open_weights(found, None, report)
    names = our_names(tensors, report)
    origin = {
        "converted_from": "diffusers",
        "class": CLASS,
        "diffusers_version": version,
        "weights": [path.name for path in found.files],
        "sha256": weights.sha256(found),
    }
    spec = Spec("vae", {"vae": Part("autoencoder_kl", to_dict(config))}, {}, origin)
    return Converted(spec, tensors.renamed({f"vae.{new}": old for new, old in names.items()}), report)


def write(folder: Path, spec: Spec, tensors: Tensors, dtype: torch.dtype | None) -> Report:
    """Write a folder that ``AutoencoderKL.from_pretrained`` loads. Raises ConfigError for another VAE."""
    ((name, part),) = spec.parts.items()
    if part.architecture != "autoencoder_kl":
        raise ConfigError(f"holds an autoencoder_kl, this is a {part.architecture}", argument="diffusers")
    config = part_config(part, f"parts.{name}")
    theirs = tensors.renamed({their_name(n.removeprefix(f"{name}.")): n for n in tensors.shapes})
    folder.mkdir(parents=True, exist_ok=True)
    weights.write(folder / f"{STEM}.safetensors", theirs, dtype)
    values = to_dict(config)
    height, width = values["sample_size"]
    depth = len(config.block_out_channels)
    values |= {
        "sample_size": height if height == width else [height, width],
        "down_block_types": [DOWN] * depth,
        "up_block_types": [UP] * depth,
    }
    write_json(folder / CONFIG_FILE, {"_class_name": CLASS, **values})
    report = Report(f"fastgen -> {CLASS}")
    report.mapped.append(f"{len(theirs.shapes)} tensors, {len(values)} options")
    return report


def _config(raw: Mapping[str, Any], where: str, report: Report) -> AutoencoderKLConfig:
    given = {key: value for key, value in raw.items() if not key.startswith("_")}
    values = dict(given)
    for key, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        types = values.pop(key, [kind])
        if not isinstance(types, list) or set(map(str, types)) - {kind}:
            raise ConfigError(f"{key}: {types!r} is not supported; supported: {kind}", argument=where)
        if len(types) != len(values.get("block_out_channels", [0])):
            raise ConfigError(
                f"{key}: {len(types)} levels, block_out_channels has {len(values.get('block_out_channels', [0]))}",
                argument=where,
            )
    size = values.get("sample_size", 32)
    values["sample_size"] = [size, size] if isinstance(size, int) else size
    if isinstance(values.get("act_fn"), str):
        values["act_fn"] = values["act_fn"].lower()
    for key in ("force_upcast",):
        if key in given:
            report.ignored.append(f"{key}={given[key]}: dtype says what networks run in")
    config = from_dict(AutoencoderKLConfig, values, where)
    report.mapped.append(", ".join(f"{key}={given[key]}" for key in given))
    if assumed := [key for key in to_dict(config) if key not in given]:
        report.assumed.append(f"{', '.join(assumed)}: diffusers' defaults")
    return config
