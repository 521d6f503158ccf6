"""Writing a folder that diffusers loads: ``DDPMPipeline.from_pretrained`` or ``UNet2DModel.from_pretrained``."""

from __future__ import annotations

from pathlib import Path

import torch

from fastgen.architectures import part_config
from fastgen.checkpoint import CONFIG_FILE, Spec
from fastgen.config import to_dict
from fastgen.engines.diffusion import DiffusionEngine
from fastgen.errors import ConfigError
from fastgen.images import PICTURES

from .. import weights
from ..base import Report, Tensors, write_json
from . import unet
from .read import INDEX, KEPT, SCHEDULER_CONFIG, SETTINGS, STEM
from .scheduler import PIPELINE_STEPS
from .scheduler_write import class_name, from_settings

# Pipelines that run a scheduler as it is. Neither scales the network's input, which solvers in sigma need, and both
# hand step() a generator, which not every class takes.
PIPELINES = {
    "DDIMScheduler": "DDIMPipeline",
    **dict.fromkeys(
        (
            "DDPMScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "SASolverScheduler",
            "LCMScheduler",
            "TCDScheduler",
        ),
        "DDPMPipeline",
    ),
}


def write(folder: Path, spec: Spec, tensors: Tensors, dtype: torch.dtype | None = None) -> Report:
    """Write a diffusion model with one U-Net into `folder`. Raises ConfigError for what diffusers cannot hold."""
    architectures = [part.architecture for part in spec.parts.values()]
    if spec.engine != "diffusion" or architectures != ["unet"]:
        raise ConfigError(
            "holds diffusion models of one unet, this is a "
            f"{spec.engine} model of {', '.join(architectures)}",
            argument="diffusers",
        )
    ((name, part),) = spec.parts.items()
    config = part_config(part, f"parts.{name}")
    settings = DiffusionEngine.settings_of(spec)
    scheduler = class_name(settings)
    report = Report(f"fastgen -> {unet.CLASS}, {scheduler}")
    schedule, lost = from_settings(settings, report)
    pipeline = PIPELINES.get(scheduler)
    if pipeline is None:
        report.assumed.append(
            f"no {INDEX}: diffusers has no unconditional pipeline that runs {scheduler}; load "
            "the U-Net and the scheduler by their subfolders"
        )
    elif config.num_class_embeds is not None:
        report.assumed.append(f"{pipeline} passes no class labels: call the U-Net in a loop of your own")
    prefix = f"{name}."
    theirs = tensors.renamed({unet.their_name(n.removeprefix(prefix)): n for n in tensors.shapes})
    kept = {key: value for key, value in to_dict(settings).items() if key in KEPT and value is not None}
    kept.pop("value_range", None)
    if settings.value_range != PICTURES:  # None says that there are no images
        kept["value_range"] = to_dict(settings)["value_range"]
    if "variance_type" in schedule:
        kept.pop("variance", None)  # the scheduler's file says it
    kept.pop("solver_options", None)
    if lost:
        kept["solver_options"] = lost
    report.mapped.append(
        f"{len(theirs.shapes)} tensors, {len(unet.from_config(config)) - 1} options of the U-Net"
    )
    report.mapped.append(f"{', '.join(kept)}: in {SETTINGS}, which fastgen reads and diffusers does not")
    if pipeline is not None and settings.steps != PIPELINE_STEPS[pipeline]:
        report.assumed.append(
            f"{pipeline} takes {PIPELINE_STEPS[pipeline]} steps where nothing is said: call it with "
            f"num_inference_steps={settings.steps}"
        )

    for sub in ("unet", "scheduler"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    weights.write(folder / "unet" / f"{STEM}.safetensors", theirs, dtype)
    write_json(folder / "unet" / CONFIG_FILE, unet.from_config(config))
    write_json(folder / "scheduler" / SCHEDULER_CONFIG, schedule)
    write_json(folder / SETTINGS, kept)
    if pipeline is not None:
        components = {
            "scheduler": ["diffusers", scheduler],
            "unet": ["diffusers", unet.CLASS],
        }
        write_json(folder / INDEX, {"_class_name": pipeline, **components})
    return report
