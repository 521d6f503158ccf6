"""What ``fastgen train --model unet`` makes: a diffusion model."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..engines.diffusion.settings import DiffusionSettings
    from ..training.data import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig

DEFAULTS: dict[str, Any] = {
    "widths": (32, 64, 96),
    "layers": 1,
    "attention": 0,
    "dropout": 0.0,
    "prediction_type": "v_prediction",
    "beta_schedule": "squaredcos_cap_v2",
}


NOT_FOR: tuple[str, ...] = ()  # options of every run that mean nothing here


def add_options(group: argparse._ArgumentGroup) -> None:
    """Declare the flags that only this model has."""
    group.add_argument("--layers", type=int, help="residual blocks a level (default 1)")
    group.add_argument(
        "--attention",
        type=int,
        help="how many of the coarsest levels attend (default 0; the middle always does)",
    )
    group.add_argument("--dropout", type=float, help="share of activations dropped (default 0)")
    group.add_argument("--prediction-type", help="epsilon, sample or v_prediction (default v_prediction)")
    group.add_argument("--beta-schedule", help="the noise schedule (default squaredcos_cap_v2)")


def train(network: nn.Module, run: Run, dataset: Dataset, folder: Path, **options: Any) -> None:
    """Train `network` into `folder`; options of ``training.loop.train``."""
    from ..diffusion.schedule import NoiseSchedule
    from ..engines.diffusion.settings import DiffusionSettings
    from ..training.diffusion import train

    settings = DiffusionSettings.from_spec(run.spec)
    preview = _previewer(folder, run.spec, settings)
    schedule, null = settings.noise_schedule, settings.null_class
    if not isinstance(schedule, NoiseSchedule):
        raise ConfigError(
            f"training needs a NoiseSchedule, got the process {schedule.name}", argument="schedule"
        )
    train(network, run, schedule, dataset, folder, null_class=null, on_preview=preview, **options)


def run_defaults(model: str) -> dict[str, Any]:
    """Where they differ from RunConfig's."""
    return {}


def new_spec(
    args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
) -> Spec:
    """The model that `args` ask for, of the data's shape and classes. Raises ConfigError or DataError."""
    from ..checkpoint import Part, Spec
    from ..engines.diffusion.settings import DiffusionSettings
    from ..models.unet import UNetConfig

    if len(dataset.shape) != 3:
        raise DataError(
            "a unet is trained on pictures, these are rows of numbers; --model vector_flow takes them",
            argument=config.data,
        )
    chosen = {n: v if (v := getattr(args, n)) is not None else default for n, default in DEFAULTS.items()}
    channels, height, width = dataset.shape
    classes, widths = dataset.num_classes, chosen["widths"]
    levels, common = len(widths), math.gcd(*widths)
    if not 0 <= chosen["attention"] <= levels:
        raise ConfigError(
            f"--attention: expected 0 to {levels} (levels), got {chosen['attention']}", argument="train"
        )
    attended = [i >= levels - chosen["attention"] for i in range(levels)]
    unet = {
        "sample_size": [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(widths),
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
        "layers_per_block": chosen["layers"],
        "attention_head_dim": math.gcd(common, 32),
        "norm_num_groups": math.gcd(common, 8),
        "dropout": chosen["dropout"],
        "num_class_embeds": None if classes is None else classes + 1,  # the last is the null class
    }
    unet = to_dict(from_dict(UNetConfig, unet, "train"))
    settings = DiffusionSettings(
        schedule={"beta_schedule": chosen["beta_schedule"], "prediction_type": chosen["prediction_type"]},
        num_classes=classes,
        null_class=classes,
        class_names=None if dataset.class_names is None else tuple(dataset.class_names),
        guidance_scale=1.0 if classes is None else 1.5,
    )
    return Spec("diffusion", {"unet": Part("unet", unet)}, to_dict(settings), provenance)


def _previewer(folder: Path, spec: Spec, settings: DiffusionSettings) -> Callable[[int, nn.Module], None]:
    def preview(step: int, network: nn.Module) -> None:
        from torch import nn

        from ..engines.diffusion.engine import DiffusionEngine
        from ..files import make_folder, remove_leftovers
        from ..images import save_grid
        from ..training.loop import PREVIEWS

        # A copy in the network's own dtype: an engine moves what it is given, and this network is still in training.
        device = next(network.parameters()).device
        engine = DiffusionEngine.from_spec(
            nn.ModuleDict({name: copy.deepcopy(network) for name in spec.parts}),
            spec,
            device=device,
            dtype="float32",
        )
        classes = settings.num_classes
        labels = None if classes is None else [i % classes for i in range(4 * min(classes, 16))]
        count = 32 if labels is None else len(labels)
        make_folder(folder / PREVIEWS)
        *_, last = engine.stream(count, seed=0, labels=labels)
        path = folder / PREVIEWS / f"step-{step:07d}.png"
        remove_leftovers(path.parent, [path.name])  # of a run that was killed here
        save_grid(last.images, path, columns=min(classes or 8, 16))

    return preview
