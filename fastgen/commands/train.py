"""``fastgen train``: a diffusion model from a folder of pictures, an IDX / NPZ file or scikit-learn's digits."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import from_dict, to_dict
from ..errors import CheckpointError, ConfigError
from .arguments import integers, size, span

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..engines.settings import DiffusionSettings
    from ..training.data import Dataset
    from ..training.run import RunConfig

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


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    from ..training.run import RunConfig

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
    network.add_argument("--widths", type=integers, default=(32, 64, 96), help="channels, finest level first")
    network.add_argument("--layers", type=int, default=1, help="residual blocks a level (default 1)")
    network.add_argument(
        "--attention", type=int, default=0, help="how many of the coarsest levels attend (the middle always)"
    )
    network.add_argument("--dropout", type=float, default=0.0)
    network.add_argument("--prediction-type", default="v_prediction")
    network.add_argument("--beta-schedule", default="squaredcos_cap_v2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train as `args` ask; returns the exit code."""
    import torch

    from ..architectures import builders
    from ..checkpoint import load_spec
    from ..engines.settings import DiffusionSettings
    from ..runtime.device import choose_device
    from ..training import data
    from ..training.diffusion import train
    from ..training.run import RunConfig, saved_config

    config = saved_config(args.folder) if args.resume else None
    if config is None and args.resume:
        raise CheckpointError(f"{args.folder}: no training run to resume in it")
    if config is None:
        chosen = {n: getattr(args, n) for n in (*RUN_OPTIONS, "data", "labels", "subset")}
        chosen = {n: v for n, v in chosen.items() if v is not None}
        config = from_dict(RunConfig, {**chosen, "flip": args.flip}, "train")
        if args.data is None:
            raise ConfigError(
                "train: --data says what to train on (a folder, an IDX or NPZ file, or `digits`)"
            )
    elif given := [n for n in (*RUN_OPTIONS, "data", "labels", "subset") if getattr(args, n) is not None]:
        flags = ", ".join("--" + n.replace("_", "-") for n in given)
        raise ConfigError(f"train: a resumed run keeps its own settings; leave out {flags}")

    subset = None if config.subset is None else (config.subset[0], config.subset[1])
    dataset = data.load(
        config.data, labels=config.labels, subset=subset, size=_size(args), channels=args.channels
    )
    spec = load_spec(args.folder) if args.resume else _new_spec(args, dataset, config)
    settings = DiffusionSettings.from_spec(spec)
    torch.manual_seed(config.seed)  # the initial weights
    (build,) = builders(spec).values()
    network = build()
    device = choose_device(args.device)
    names = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    print(
        f"{len(dataset)} pictures {'x'.join(map(str, dataset.shape))}{names}; "
        f"{sum(p.numel() for p in network.parameters()):,} parameters on {device}"
    )
    train(
        network,
        spec,
        settings.noise_schedule,
        dataset,
        config,
        args.folder,
        null_class=settings.null_class,
        device=device,
        resume=args.resume,
        progress=not args.quiet,
        on_preview=_previewer(args.folder, spec, settings),
    )
    print(f"saved {args.folder}; draw from it with: fastgen sample {args.folder}")
    return 0


def _size(args: argparse.Namespace) -> tuple[int, int] | None:
    if args.resume and args.size is None:  # a folder is decoded to the size the run began with
        from ..checkpoint import load_spec

        (part,) = load_spec(args.folder).parts.values()
        height, width = part.config["sample_size"]
        args.channels = part.config["in_channels"]
        return height, width
    return args.size


def _new_spec(args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> Spec:
    from .. import __version__
    from ..checkpoint import Part, Spec
    from ..engines.settings import DiffusionSettings
    from ..models.unet import UNetConfig

    channels, height, width = dataset.shape
    classes = dataset.num_classes
    widths = args.widths
    levels = len(widths)
    attended = [i >= levels - args.attention for i in range(levels)]
    common = math.gcd(*widths)
    unet = UNetConfig(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        layers_per_block=args.layers,
        attention_head_dim=math.gcd(common, 32),
        norm_num_groups=math.gcd(common, 8),
        dropout=args.dropout,
        num_class_embeds=None if classes is None else classes + 1,  # the last is the null class
    )
    from_dict(UNetConfig, to_dict(unet), "train")  # bounds, with the message a checkpoint would get
    settings = DiffusionSettings(
        schedule={"beta_schedule": args.beta_schedule, "prediction_type": args.prediction_type},
        num_classes=classes,
        null_class=classes,
        class_names=None if dataset.class_names is None else tuple(dataset.class_names),
        guidance_scale=1.0 if classes is None else 1.5,
    )
    run = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data", "labels")}
    provenance = {"trained_with": f"fastgen {__version__}", "data": Path(config.data).name, "run": run}
    return Spec("diffusion", {"unet": Part("unet", to_dict(unet))}, to_dict(settings), provenance)


def _previewer(folder: Path, spec: Spec, settings: DiffusionSettings) -> Callable[[int, nn.Module], None]:
    def preview(step: int, network: nn.Module) -> None:
        from ..engines.diffusion import DiffusionEngine
        from ..images import save_grid

        engine = DiffusionEngine(network, spec, device=next(network.parameters()).device)
        classes = settings.num_classes
        labels = None if classes is None else [i % classes for i in range(4 * min(classes, 16))]
        count = 32 if labels is None else len(labels)
        (folder / "previews").mkdir(exist_ok=True)
        *_, last = engine.stream(count, seed=0, labels=labels)
        save_grid(last.images, folder / "previews" / f"step-{step:07d}.png", columns=min(classes or 8, 16))

    return preview
