"""``UNet2DModel``: its config.json and the names of its tensors, to ours and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fastgen.config import from_dict, to_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.unet import UNetConfig

from ..base import Report, Tensors

CLASS = "UNet2DModel"
OLD_PREFIX = "UNetRes"  # of block types before diffusers 0.1: UNetResDownBlock2D

# What a key that is missing means; where it is not here, ours has the same default.
DEFAULTS: dict[str, Any] = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
}
# Written by training's EMAModel.save_pretrained, whose weights are the averaged ones.
AVERAGING = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
ENDS = {"conv_in.weight", "conv_out.weight"}
SILENT = ("sample_size", "dropout")  # not to be assumed, or without effect on an image
# Attention in checkpoints from before diffusers 0.15, in those since, and in ours.
TENSOR_NAMES = (
    (re.compile(r"(.*attentions\.\d+)\.query\.(weight|bias)"), r"\1.to_q.\2"),
    (re.compile(r"(.*attentions\.\d+)\.key\.(weight|bias)"), r"\1.to_k.\2"),
    (re.compile(r"(.*attentions\.\d+)\.value\.(weight|bias)"), r"\1.to_v.\2"),
    (re.compile(r"(.*attentions\.\d+)\.proj_attn\.(weight|bias)"), r"\1.to_out.\2"),
    (re.compile(r"(.*attentions\.\d+)\.to_out\.0\.(weight|bias)"), r"\1.to_out.\2"),
    (re.compile(r"time_proj\.W"), "time_proj.weight"),
)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of a U-Net of diffusers."""
    found = set(names)
    return bool(ENDS & found) and any(name.startswith("time_embedding.") for name in found)


def to_config(raw: Mapping[str, Any], where: str, report: Report) -> UNetConfig:
    """Our configuration from a ``config.json`` of theirs. Raises ConfigError that names the option."""
    if raw.get("_class_name", CLASS) != CLASS:
        raise ConfigError(
            f"_class_name: {raw['_class_name']!r} is not supported; supported: {CLASS}", argument=where
        )
    given = {key: value for key, value in raw.items() if not key.startswith("_")}
    if averaging := [f"{key}={given.pop(key)}" for key in AVERAGING if key in given]:
        report.ignored.append(
            f"{', '.join(averaging)}: how the weights were averaged in training, no effect on them"
        )
    values = {**DEFAULTS, **given}
    size = values.get("sample_size")
    if size is None:
        raise ConfigError(
            "sample_size is null, so nobody knows how large its images are; write it into the file",
            argument=where,
        )
    values["sample_size"] = [size, size] if isinstance(size, int) else size
    for key in ("down_block_types", "up_block_types"):
        if isinstance(values[key], list):
            values[key] = [k.removeprefix(OLD_PREFIX) if isinstance(k, str) else k for k in values[key]]
    for key in ("downsample_type", "upsample_type"):
        if values.get(key, "conv") is None:
            values[key] = "conv"
    if isinstance(values.get("act_fn"), str):
        values["act_fn"] = values["act_fn"].lower()
    if values.get("num_class_embeds") is not None and values.get("class_embed_type") is not None:
        report.ignored.append(
            f"num_class_embeds={values.pop('num_class_embeds')}: no effect with class_embed_type"
        )
    if (
        values.get("num_train_timesteps") is not None
        and values.get("time_embedding_type", "positional") != "learned"
    ):
        report.ignored.append(
            f"num_train_timesteps={values.pop('num_train_timesteps')} of the U-Net: "
            "no effect but with time_embedding_type learned"
        )
    try:
        config = from_dict(UNetConfig, values, where)
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{error}", argument=where) from error
    report.mapped.append("U-Net: " + ", ".join(f"{k}={given[k]}" for k in given if k in values))
    filled = {**to_dict(config), **DEFAULTS}
    if assumed := [
        f"{key}={_shown(value)}"
        for key, value in filled.items()
        if key not in given and key not in SILENT and value is not None
    ]:
        report.assumed.append(f"U-Net: {', '.join(assumed)}, diffusers' defaults")
    return config


def from_config(config: UNetConfig) -> dict[str, Any]:
    """The ``config.json`` of theirs for our configuration."""
    values = to_dict(config)
    height, width = values["sample_size"]
    values["sample_size"] = height if height == width else [height, width]
    return {"_class_name": CLASS, **values}


def our_names(tensors: Tensors, report: Report) -> dict[str, str]:
    """{our name: their name} of every tensor. Raises CheckpointError where two of one name differ."""
    found: dict[str, str] = {}
    old = 0
    for name in tensors.shapes:
        new = name
        for pattern, replacement in TENSOR_NAMES:
            if pattern.fullmatch(name):
                new = pattern.sub(replacement, name)
                old += ".to_out.0." not in name
        if new in found:  # old files hold the fourier frequencies under two names
            if not torch.equal(tensors.get(name), tensors.get(found[new])):
                raise CheckpointError(
                    f"{name} and {found[new]} are names of one tensor, and their values differ; "
                    "remove the one that is not meant",
                    argument=tensors.where,
                )
            report.ignored.append(f"tensor {name}: the same as {found[new]}")
            continue
        found[new] = name
    renamed = sum(new != name for new, name in found.items())
    if renamed:
        report.renamed.append(
            f"{renamed} of {len(found)} tensors (to_out.0 is to_out here"
            + (f"; {old} have names from before diffusers 0.15)" if old else ")")
        )
    return found


def their_name(name: str) -> str:
    """The name of our tensor `name` in their file."""
    return re.sub(r"(attentions\.\d+)\.to_out\.", r"\1.to_out.0.", name)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
