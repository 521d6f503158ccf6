"""Reading a folder of diffusers: a pipeline with model_index.json, or a bare U-Net, perhaps beside a scheduler.

    model_index.json                            DDPMPipeline or DDIMPipeline
    unet/config.json, unet/diffusion_pytorch_model[.VARIANT].safetensors (or .bin, or shards with an index)
    scheduler/scheduler_config.json

A checkpoint of its training scripts has unet_ema/, the averaged weights, beside unet/, and no scheduler. Weights may
have accelerate's names (model.safetensors, pytorch_model.bin); a file of weights beside config.json is a model, too.
Folders from before diffusers 0.3, as google/ddpm-cifar10-32, hold the same files without the two folders.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgen.checkpoint import CONFIG_FILE, Part, Spec
from fastgen.config import to_dict
from fastgen.engines.diffusion import DiffusionEngine
from fastgen.errors import CheckpointError, ConfigError

from .. import weights
from ..base import Converted, Report, read_json
from . import scheduler, unet

INDEX = "model_index.json"
SCHEDULER_CONFIG = "scheduler_config.json"
STEM = "diffusion_pytorch_model"
SETTINGS = "fastgen.json"  # ours beside theirs: what diffusers has no place for
KEPT = (
    "num_classes",
    "null_class",
    "class_names",
    "steps",
    "guidance_scale",
    "variance",
    "solver_options",
    "value_range",
)
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
FILES = (
    INDEX,
    CONFIG_FILE,
    f"unet/{CONFIG_FILE}",
    SCHEDULER_CONFIG,
    f"scheduler/{SCHEDULER_CONFIG}",
    SETTINGS,
    "*.index*.json",
)
AVERAGED = "unet_ema"
WEIGHTS = (STEM, *weights.STEMS)
OWNED = (*FILES[:-1], f"{STEM}*", f"unet/{STEM}*")


def detect(folder: Path) -> bool:
    """Whether this is a folder of diffusers, or a U-Net's weights beside its config.json."""
    if os.path.isfile(folder):
        return _is_weights(folder)
    if os.path.isfile(folder / INDEX):  # False, too, for what may not be looked at, or is no name of a file
        return True
    for path in (folder / CONFIG_FILE, folder / "unet" / CONFIG_FILE, folder / AVERAGED / CONFIG_FILE):
        try:
            return "_class_name" in read_json(path)
        except CheckpointError:
            continue
    return False


def _is_weights(path: Path) -> bool:
    try:
        if read_json(path.parent / CONFIG_FILE).get("_class_name") != unet.CLASS:
            return False
        return weights.hold(weights.Found((path,)), unet.recognises)
    except (CheckpointError, OSError, ValueError):
        return False


def downloads(folder: Path, variant: str | None) -> list[list[str]]:
    """Patterns of weight files, best first; `folder` holds the small files."""
    where = "unet/" if (folder / "unet" / CONFIG_FILE).is_file() else ""
    middle = f".{variant}" if variant else ""
    return [
        [f"{where}{STEM}{middle}.{kind}", f"{where}{STEM}{middle}-*-of-*.{kind}"]
        for kind in ("safetensors", "bin")
    ]


def read(folder: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
    """The model in `folder`, or of a file in it. Raises CheckpointError or ConfigError that names file and option."""
    file = folder if folder.is_file() else None
    folder = folder.parent if file is not None else folder
    if assume:
        raise ConfigError(
            f"{folder} says everything itself, leave out {', '.join(assume)}", argument="assume"
        )
    report = Report()
    pipeline, version = None, None
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        pipeline, version = _check_index(index, folder / INDEX), index.get("_diffusers_version")
    network = folder if file is not None else _network(folder, report)
    if not (network / CONFIG_FILE).is_file():
        raise CheckpointError(f"no {CONFIG_FILE} of the U-Net; is the download complete?", argument=network)
    raw = read_json(network / CONFIG_FILE)
    version = version or raw.get("_diffusers_version")
    report.title = f"{pipeline or unet.CLASS} of diffusers {version or '(no version)'} -> fastgen"
    config = unet.to_config(raw, str(network / CONFIG_FILE), report)
    settings = _settings(folder, pipeline, report)
    if config.num_class_embeds is not None:
        settings.setdefault("num_classes", config.num_class_embeds)
    if file is not None:
        found = weights.Found((file,))
        tensors = weights.open_weights(found, unet.recognises, report, variant)
    else:
        found = weights.find(network, WEIGHTS, variant)
        tensors = weights.open_weights(found, unet.recognises, report)
        report.ignored.extend(weights.training(folder))
    names = unet.our_names(tensors, report)
    origin = {
        "converted_from": "diffusers",
        "class": pipeline or unet.CLASS,
        "diffusers_version": version,
        "weights": [p.name for p in found.files],
        "sha256": weights.sha256(found),
    }
    spec = Spec("diffusion", {"unet": Part("unet", to_dict(config))}, settings, origin)
    DiffusionEngine.settings_of(spec)  # fastgen.json is not trusted
    return Converted(spec, tensors.renamed({f"unet.{new}": old for new, old in names.items()}), report)


def _network(folder: Path, report: Report) -> Path:
    """Where the U-Net is; of a checkpoint of training the averaged one."""
    plain = folder / "unet" if (folder / "unet").is_dir() else folder
    averaged = folder / AVERAGED
    if not (averaged / CONFIG_FILE).is_file() or not any(averaged.glob(f"{STEM}*")):
        return plain
    others = (
        f", not those of {plain.name}: give the path of that folder to take them" if plain != folder else ""
    )
    report.assumed.append(f"averaged weights (EMA) of {AVERAGED}{others}")
    return averaged


def _check_index(index: dict[str, Any], where: Path) -> str:
    """The pipeline's class, if we can run it and everything in it."""
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise ConfigError(
            f"_class_name: {pipeline!r} is not supported; supported: {', '.join(PIPELINES)}, and folders of "
            f"a {unet.CLASS} alone",
            argument=where,
        )
    for name, value in index.items():
        if name.startswith("_") or name == "scheduler":
            continue
        kind = value[1] if isinstance(value, list) and len(value) == 2 else value
        if name != "unet" and kind is not None:
            raise ConfigError(
                f"{name}: a pipeline with it is not supported; supported: unet, scheduler", argument=where
            )
        if name == "unet" and kind != unet.CLASS:
            raise ConfigError(f"unet: {kind!r} is not supported; supported: {unet.CLASS}", argument=where)
    return pipeline


def _settings(folder: Path, pipeline: str | None, report: Report) -> dict[str, Any]:
    places = [folder / "scheduler" / SCHEDULER_CONFIG, folder / SCHEDULER_CONFIG]
    path = next((p for p in places if p.is_file()), None)
    if path is None and pipeline is not None:
        raise CheckpointError(f"no scheduler/{SCHEDULER_CONFIG}; is the download complete?", argument=folder)
    if path is None:
        aside = Report()
        settings = scheduler.to_settings({"_class_name": "DDPMScheduler"}, str(folder), aside)
        report.assumed.append(f"no scheduler in the folder, so {', '.join(aside.assumed)}")
    else:
        settings = scheduler.to_settings(read_json(path), str(path), report, pipeline)
    ours = folder / SETTINGS
    if ours.is_file():
        kept = read_json(ours)
        if unknown := sorted(set(kept) - set(KEPT)):
            raise ConfigError(f"unknown key {unknown[0]}; known: {', '.join(KEPT)}", argument=ours)
        options = kept.pop("solver_options", None)
        if options is not None and not isinstance(options, dict):
            raise ConfigError(
                f"solver_options: expected an object, got {type(options).__name__}", argument=ours
            )
        if options:
            settings["solver_options"] = {**(settings["solver_options"] or {}), **options}
        settings |= kept
        report.mapped.append(f"{SETTINGS}: {', '.join(f'{k}={v}' for k, v in kept.items())}")
    return settings
