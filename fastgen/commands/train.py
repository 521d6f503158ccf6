"""``fastgen train``: a model from a folder of pictures, an IDX / NPZ file, a table, or a data set that has a name."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import CheckpointError, ConfigError
from . import train_diffusion, train_flow
from .arguments import integers, size, span

if TYPE_CHECKING:
    import torch

    from ..training.data import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig

# How models are made and trained: each has `DEFAULTS`, of the flags it has, `NOT_FOR`, those it
# has not, `run_defaults`, `new_spec` and `train`.
FAMILIES: dict[str, ModuleType] = {"diffusion": train_diffusion, "flow": train_flow}
MODELS = {"unet": "diffusion"} | dict.fromkeys(train_flow.MODELS, "flow")

RUN_OPTIONS = {  # flags that set a field of RunConfig: (name, type, help)
    "steps": (int, "optimiser steps"),
    "batch_size": (int, "samples a step"),
    "lr": (float, "peak learning rate (AdamW, linear warm-up, cosine decay)"),
    "warmup": (int, "steps of warm-up"),
    "weight_decay": (float, "AdamW's decoupled decay; of flows 0 unless given"),
    "grad_clip": (float, "largest gradient norm, 0 = none"),
    "ema_decay": (float, "decay of the averaged weights, which are what is saved"),
    "label_dropout": (float, "share of labels replaced by the null class, for guidance"),
    "seed": (int, "seed of weights, order, times and noise"),
    "precision": (str, "auto, fp32 or bf16"),
    "weights_dtype": (str, "float32 or float16: dtype of the saved weights"),
    "save_every": (int, "steps between checkpoints"),
    "preview_every": (int, "steps between preview sheets, 0 = none"),
}
COPIES = 5  # of the weights: themselves, gradients, AdamW's two moments, the average
DATA_OPTIONS = ("data", "labels", "subset", "size", "channels", "flip")
NETWORK_OPTIONS = sorted({name for family in FAMILIES.values() for name in family.DEFAULTS}, reverse=True)


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    from ..training.settings import RunConfig

    defaults = RunConfig()
    parser = subparsers.add_parser(
        "train",
        help="train a model on your pictures or tables",
        description="Train a diffusion model or a flow. FOLDER becomes a model that `fastgen sample FOLDER` takes at "
        "any moment of the run; with --resume an interrupted run goes on exactly where it was saved.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model and the run are kept")
    parser.add_argument("--model", choices=MODELS, help="what to train (default unet: a diffusion model)")
    parser.add_argument(
        "--data",
        help="picture folder, IDX or NPZ file, or `digits` (scikit-learn's); for vector_flow a table (CSV, NPY or "
        "NPZ), `two-moons` or `mixture6`",
    )
    parser.add_argument("--labels", help="IDX file of labels, where it does not lie beside the pictures")
    parser.add_argument("--subset", type=span, metavar="FIRST-LAST", help="use only these samples of a file")
    parser.add_argument("--size", type=size, metavar="H[xW]", help="picture size; folders are resized to it")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="grey or RGB (folders; default RGB)")
    parser.add_argument("--flip", action="store_true", help="mirror half of the pictures")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER")
    for name, (kind, text) in RUN_OPTIONS.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, help=f"{text} (default {getattr(defaults, name)})")
    parser.add_argument(
        "--widths",
        type=integers,
        help="channels of a unet, finest level first (default 32,64,96), or of what lies within a flow's couplings",
    )
    train_diffusion.add_options(parser.add_argument_group("unet: network and noise"))
    train_flow.add_options(parser.add_argument_group(", ".join(train_flow.MODELS)))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train as `args` ask; returns the exit code."""
    import torch

    from ..architectures import builders
    from ..runtime.device import choose_device
    from ..training.run import check_state, saved_run

    if args.folder.exists() and not args.folder.is_dir():
        raise ConfigError(
            "is a file; FOLDER is where the model is kept, --data says what to train on", argument=args.folder
        )
    device = choose_device(args.device)
    run, dataset = _earlier_run(args) if args.resume else _new_run(args, device)
    (build,) = builders(run.spec).values()
    with torch.device("meta"):
        planned = build()
    if args.resume:  # the run says how large its network is: see that its weights are, before they get room
        check_state(args.folder, planned, run.config)
    _check_memory(planned, device)
    torch.manual_seed(run.config.seed)  # the initial weights
    network = build()
    kind = "pictures" if len(dataset.shape) == 3 else "rows of"
    names = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    print(
        f"{len(dataset)} {kind} {'x'.join(map(str, dataset.shape))}{names}; "
        f"{sum(p.numel() for p in network.parameters()):,} parameters on {device}"
    )
    options = {"device": device, "resume": args.resume, "progress": not args.quiet}
    try:
        FAMILIES[run.spec.engine].train(network, run, dataset, args.folder, **options)
    except KeyboardInterrupt as stop:
        if saved_run(args.folder) is not None:
            stop.args = (*stop.args, f"go on with: fastgen train {shlex.quote(str(args.folder))} --resume")
        raise
    print(f"saved {args.folder}; draw from it with: fastgen sample {args.folder}")
    return 0


def _check_memory(network: torch.nn.Module, device: torch.device) -> None:
    """Whether `network` (on `meta`) can be trained in the machine's memory at all. Raises ConfigError.

    On a GPU running out is an error that can be caught; a CPU's system ends the process without a word.
    """
    if device.type != "cpu":
        return
    count = sum(p.numel() for p in network.parameters())
    needed = COPIES * 4 * count  # bytes, float32
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ConfigError(
            f"the network has {count:,} parameters, and training holds {COPIES} numbers for each: "
            f"{needed / 2**30:.1f} GiB, this machine has {there / 2**30:.1f}; take smaller --widths",
            argument="train",
        )


def _given(args: argparse.Namespace, names: list[str]) -> list[str]:
    """The flags out of `names` that were given."""
    values = {name: getattr(args, name) for name in names}
    # `is`, not `in`: 0 equals False, and is an answer
    given = [n for n, value in values.items() if value is not None and value is not False and value != []]
    return ["--" + n.replace("_", "-") for n in given]


def _earlier_run(args: argparse.Namespace) -> tuple[Run, Dataset]:
    """The run to resume, and the data it began with, pictures at the size they had."""
    from ..training import data
    from ..training.run import saved_run

    if given := _given(args, ["model", *RUN_OPTIONS, *DATA_OPTIONS, *NETWORK_OPTIONS]):
        raise ConfigError(
            f"a resumed run keeps its own settings; leave out {', '.join(given)}", argument="train"
        )
    run = saved_run(args.folder)
    if run is None:
        raise CheckpointError("no training run to resume in it", argument=args.folder)
    (part,) = run.spec.parts.values()
    if MODELS.get(part.architecture) != run.spec.engine:
        raise CheckpointError(
            f"its run makes a {run.spec.engine} model of a {part.architecture}, which nothing trains",
            argument=args.folder,
        )
    config, shape = run.config, run.data["shape"]
    subset = None if config.subset is None else (config.subset[0], config.subset[1])
    size, channels = ((shape[1], shape[2]), shape[0]) if len(shape) == 3 else (None, None)
    dataset = data.load(config.data, labels=config.labels, subset=subset, size=size, channels=channels)
    return run, dataset


def _new_run(args: argparse.Namespace, device: torch.device) -> tuple[Run, Dataset]:
    from .. import __version__
    from ..training import data
    from ..training.run import Run
    from ..training.settings import RunConfig

    model = args.model or "unet"
    family = FAMILIES[MODELS[model]]
    if wrong := _given(args, [*(n for n in NETWORK_OPTIONS if n not in family.DEFAULTS), *family.NOT_FOR]):
        raise ConfigError(f"--model {model} does not take {', '.join(wrong)}", argument="train")
    if args.data is None:
        raise ConfigError(
            "--data says what to train on (a folder, an IDX, NPZ, NPY or CSV file, or "
            f"{', '.join(f'`{name}`' for name in data.NAMED)})",
            argument="train",
        )
    chosen = {n: getattr(args, n) for n in (*RUN_OPTIONS, "labels", "subset") if getattr(args, n) is not None}
    # Absolute, so that the run can be resumed from any folder.
    chosen["data"] = args.data if args.data in data.NAMED else str(Path(args.data).absolute())
    if args.labels is not None:
        chosen["labels"] = str(Path(args.labels).absolute())
    for name in ("data", "labels"):
        if name in chosen:
            data.check_name(chosen[name], f"--{name}")
    chosen = {**family.run_defaults(model), **chosen, "flip": args.flip}
    config = from_dict(RunConfig, chosen, "train").settled(device)
    dataset = data.load(
        config.data, labels=config.labels, subset=args.subset, size=args.size, channels=args.channels
    )
    if args.flip and len(dataset.shape) != 3:
        raise ConfigError("--flip mirrors pictures; rows of a table have no mirror image", argument="train")
    spec = family.new_spec(args, dataset, config, _provenance(config, __version__))
    return Run(config, spec, data.describe(dataset)), dataset


def _provenance(config: RunConfig, version: str) -> dict[str, Any]:
    """Where the model comes from, as its config says it; no path of this machine."""
    run = {k: v for k, v in to_dict(config).items() if k not in ("data", "labels")}
    return {"trained_with": f"fastgen {version}", "data": Path(config.data).name, "run": run}
