"""``fastgen train``: a diffusion model from a folder of pictures, an IDX / NPZ file or scikit-learn's digits."""

from __future__ import annotations

import argparse
import copy
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import CheckpointError, ConfigError
from .arguments import integers, size, span

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..checkpoint import Spec
    from ..engines.settings import DiffusionSettings
    from ..training.data import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig

RUN_OPTIONS = {  # flags that set a field of RunConfig: (name, type, help)
    "steps": (int, "optimiser steps"),
    "batch_size": (int, "pictures a step"),
    "lr": (float, "peak learning rate (AdamW, linear warm-up, cosine decay)"),
    "warmup": (int, "steps of warm-up"),
    "weight_decay": (float, "AdamW's decoupled decay"),
    "grad_clip": (float, "largest gradient norm, 0 = none"),
    "ema_decay": (float, "decay of the averaged weights, which are what is saved"),
    "label_dropout": (float, "share of labels replaced by the null class, for guidance"),
    "seed": (int, "seed of weights, order, times and noise"),
    "precision": (str, "auto, fp32 or bf16"),
    "weights_dtype": (str, "float32 or float16: dtype of the saved weights"),
    "save_every": (int, "steps between checkpoints"),
    "preview_every": (int, "steps between preview sheets, 0 = none"),
}
DATA_OPTIONS = ("data", "labels", "subset", "size", "channels", "flip")
NETWORK_DEFAULTS: dict[str, Any] = {
    "widths": (32, 64, 96),
    "layers": 1,
    "attention": 0,
    "dropout": 0.0,
    "prediction_type": "v_prediction",
    "beta_schedule": "squaredcos_cap_v2",
}


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    from ..training.settings import RunConfig

    defaults = RunConfig()
    parser = subparsers.add_parser(
        "train",
        help="train a diffusion model on your pictures",
        description="Train a diffusion model. FOLDER becomes a model that `fastgen sample FOLDER` takes at any "
        "moment of the run; with --resume an interrupted run goes on exactly where it was saved.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model and the run are kept")
    parser.add_argument("--data", help="picture folder, IDX or NPZ file, or `digits` (scikit-learn's)")
    parser.add_argument("--labels", help="IDX file of labels, where it does not lie beside the pictures")
    parser.add_argument("--subset", type=span, metavar="FIRST-LAST", help="use only these pictures of a file")
    parser.add_argument("--size", type=size, metavar="H[xW]", help="picture size; folders are resized to it")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="grey or RGB (folders; default RGB)")
    parser.add_argument("--flip", action="store_true", help="mirror half of the pictures")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER")
    for name, (kind, text) in RUN_OPTIONS.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, help=f"{text} (default {getattr(defaults, name)})")
    network = parser.add_argument_group("network and noise")
    network.add_argument("--widths", type=integers, help="channels, finest level first (default 32,64,96)")
    network.add_argument("--layers", type=int, help="residual blocks a level (default 1)")
    network.add_argument(
        "--attention",
        type=int,
        help="how many of the coarsest levels attend (default 0; the middle always does)",
    )
    network.add_argument("--dropout", type=float, help="share of activations dropped (default 0)")
    network.add_argument("--prediction-type", help="epsilon, sample or v_prediction (default v_prediction)")
    network.add_argument("--beta-schedule", help="the noise schedule (default squaredcos_cap_v2)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train as `args` ask; returns the exit code."""
    import torch

    from ..architectures import builders
    from ..diffusion.schedule import NoiseSchedule
    from ..engines.settings import DiffusionSettings
    from ..runtime.device import choose_device
    from ..training.diffusion import train
    from ..training.run import check_state, saved_run

    if args.folder.exists() and not args.folder.is_dir():
        raise ConfigError(
            f"{args.folder}: is a file; FOLDER is where the model is kept, --data says what to train on"
        )
    device = choose_device(args.device)
    run, dataset = _earlier_run(args) if args.resume else _new_run(args, device)
    settings = DiffusionSettings.from_spec(run.spec)
    schedule = settings.noise_schedule
    if not isinstance(schedule, NoiseSchedule):
        raise ConfigError(f"schedule: training needs a NoiseSchedule, got the process {schedule.name}")
    torch.manual_seed(run.config.seed)  # the initial weights
    (build,) = builders(run.spec).values()
    if args.resume:  # the run says how large its network is: see that its weights are, before they get room
        with torch.device("meta"):
            check_state(args.folder, build(), run.config)
    network = build()
    names = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    print(
        f"{len(dataset)} pictures {'x'.join(map(str, dataset.shape))}{names}; "
        f"{sum(p.numel() for p in network.parameters()):,} parameters on {device}"
    )
    try:
        train(
            network,
            run,
            schedule,
            dataset,
            args.folder,
            null_class=settings.null_class,
            device=device,
            resume=args.resume,
            progress=not args.quiet,
            on_preview=_previewer(args.folder, run.spec, settings),
        )
    except KeyboardInterrupt as stop:
        if saved_run(args.folder) is not None:
            stop.args = (*stop.args, f"go on with: fastgen train {shlex.quote(str(args.folder))} --resume")
        raise
    print(f"saved {args.folder}; draw from it with: fastgen sample {args.folder}")
    return 0


def _earlier_run(args: argparse.Namespace) -> tuple[Run, Dataset]:
    """The run to resume, and the pictures it began with, at the size it began with."""
    from ..training import data
    from ..training.run import saved_run

    # `is`, not `in`: 0 equals False, and is an answer
    values = {n: getattr(args, n) for n in (*RUN_OPTIONS, *DATA_OPTIONS, *NETWORK_DEFAULTS)}
    given = [n for n, value in values.items() if value is not None and value is not False]
    if given:
        flags = ", ".join("--" + n.replace("_", "-") for n in given)
        raise ConfigError(f"train: a resumed run keeps its own settings; leave out {flags}")
    run = saved_run(args.folder)
    if run is None:
        raise CheckpointError(f"{args.folder}: no training run to resume in it")
    config, (channels, height, width) = run.config, run.data["shape"]
    subset = None if config.subset is None else (config.subset[0], config.subset[1])
    dataset = data.load(
        config.data, labels=config.labels, subset=subset, size=(height, width), channels=channels
    )
    return run, dataset


def _new_run(args: argparse.Namespace, device: torch.device) -> tuple[Run, Dataset]:
    from ..training import data
    from ..training.run import Run
    from ..training.settings import RunConfig

    if args.data is None:
        raise ConfigError("train: --data says what to train on (a folder, an IDX or NPZ file, or `digits`)")
    chosen = {n: getattr(args, n) for n in (*RUN_OPTIONS, "labels", "subset") if getattr(args, n) is not None}
    # Absolute, so that the run can be resumed from any folder.
    chosen["data"] = args.data if args.data == "digits" else str(Path(args.data).absolute())
    if args.labels is not None:
        chosen["labels"] = str(Path(args.labels).absolute())
    for name in ("data", "labels"):
        if name in chosen:
            data.check_name(chosen[name], f"--{name}")
    config = from_dict(RunConfig, {**chosen, "flip": args.flip}, "train").settled(device)
    dataset = data.load(
        config.data, labels=config.labels, subset=args.subset, size=args.size, channels=args.channels
    )
    return Run(config, _new_spec(args, dataset, config), data.describe(dataset)), dataset


def _new_spec(args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> Spec:
    from .. import __version__
    from ..checkpoint import Part, Spec
    from ..engines.settings import DiffusionSettings
    from ..models.unet import UNetConfig

    chosen = {
        n: v if (v := getattr(args, n)) is not None else default for n, default in NETWORK_DEFAULTS.items()
    }
    channels, height, width = dataset.shape
    classes, widths = dataset.num_classes, chosen["widths"]
    levels, common = len(widths), math.gcd(*widths)
    if not 0 <= chosen["attention"] <= levels:
        raise ConfigError(f"train: --attention: expected 0 to {levels} (levels), got {chosen['attention']}")
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
    run = {k: v for k, v in to_dict(config).items() if k not in ("data", "labels")}
    provenance = {"trained_with": f"fastgen {__version__}", "data": Path(config.data).name, "run": run}
    return Spec("diffusion", {"unet": Part("unet", unet)}, to_dict(settings), provenance)


def _previewer(folder: Path, spec: Spec, settings: DiffusionSettings) -> Callable[[int, nn.Module], None]:
    def preview(step: int, network: nn.Module) -> None:
        from ..engines.diffusion import DiffusionEngine
        from ..files import make_folder, remove_leftovers
        from ..images import save_grid
        from ..training.diffusion import PREVIEWS

        # A copy in the network's own dtype: an engine moves what it is given, and this network is still in training.
        device = next(network.parameters()).device
        engine = DiffusionEngine.from_spec(copy.deepcopy(network), spec, device=device, dtype="float32")
        classes = settings.num_classes
        labels = None if classes is None else [i % classes for i in range(4 * min(classes, 16))]
        count = 32 if labels is None else len(labels)
        make_folder(folder / PREVIEWS)
        *_, last = engine.stream(count, seed=0, labels=labels)
        path = folder / PREVIEWS / f"step-{step:07d}.png"
        remove_leftovers(path.parent, [path.name])  # of a run that was killed here
        save_grid(last.images, path, columns=min(classes or 8, 16))

    return preview
