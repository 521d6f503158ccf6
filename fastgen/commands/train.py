"""``fastgen train``: a model from a folder of images, an IDX / NPZ file, a table, or a data set that has a name.

What can be trained, and how, is said by the recipes of FAMILIES.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import CheckpointError, ConfigError
from ..families import FAMILIES, Family, Flag
from ..families.family import given
from ..families.preview import previewer
from ..families.recipe import Recipe
from .arguments import size, span
from .family_flags import add_owned_flags

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..training.batch import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig

RUN_OPTIONS = {  # flags that set a field of RunConfig: (type, help)
    "steps": (int, "optimiser steps"),
    "batch_size": (int, "samples per step"),
    "lr": (float, "peak learning rate (AdamW, linear warm-up, then --decay)"),
    "warmup": (int, "steps of warm-up"),
    "decay": (str, "cosine, or linear: constant for half of the run, then down to 0"),
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
DATA_FLAGS = (
    Flag(
        "--data",
        {
            "help": "image folder, IDX or NPZ file, or `digits` (scikit-learn's); for models of rows a table (CSV, NPY "
            "or NPZ), `two-moons` or `mixture6`"
        },
    ),
    Flag("--labels", {"help": "IDX file of labels, where it does not lie beside the images"}),
    Flag("--subset", {"type": span, "metavar": "FIRST-LAST", "help": "use only these samples of a file"}),
    Flag("--size", {"type": size, "metavar": "H[xW]", "help": "image size; folders are resized to it"}),
    Flag("--channels", {"type": int, "choices": (1, 3), "help": "grey or RGB (folders; default RGB)"}),
    Flag(
        "--background",
        {
            "metavar": "COLOUR",
            "help": "what lies under transparent pixels: white (default), black, #ff8000, ...",
        },
    ),
    Flag("--flip", {"action": "store_true", "help": "mirror half of the images"}),
)
PATHS = ("data", "labels", "target", "styles", "encoder", "init")  # fields of RunConfig
COPIES = 5  # of the weights: themselves, gradients, AdamW's two moments, the average


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on your images or tables",
        description="Train a generative model. FOLDER becomes a model that `fastgen sample FOLDER` and the other "
        "commands take at any moment of the run; with --resume an interrupted run goes on exactly where it was saved.",
    )
    models = recipes()
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model and the run are kept")
    parser.add_argument("--model", choices=models, help=f"what to train (default {next(iter(models))})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER")
    parser.add_argument(
        "--changed-data",
        action="store_true",
        help="with --resume: go on though the number of samples has changed, as after a broken image was removed",
    )
    for flag in (*DATA_FLAGS, *run_flags()):
        flag.add(parser)
    add_owned_flags(parser, {name: recipe.flags for name, (_, recipe) in models.items()}, "{}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=partial(run, parser=parser))


def recipes() -> dict[str, tuple[Family, Recipe]]:
    """What can be trained, by the names that --model takes; the first one is the default."""
    return {name: (family, recipe) for family in FAMILIES.values() for name, recipe in family.recipes.items()}


def run_flags() -> list[Flag]:
    """Those that set a field of RunConfig, of every model."""
    from ..training.settings import RunConfig

    defaults = RunConfig()
    return [
        Flag(
            "--" + name.replace("_", "-"),
            {"type": kind, "help": f"{text} (default {getattr(defaults, name)})"},
        )
        for name, (kind, text) in RUN_OPTIONS.items()
    ]


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Train as `args` ask; returns the exit code."""
    if args.changed_data and not args.resume:
        parser.error("--changed-data belongs to --resume")
    models = recipes()
    every = {flag.name: flag for _, recipe in models.values() for flag in recipe.flags}
    if not args.resume:
        model = args.model or next(iter(models))
        recipe = models[model][1]
        other = [flag for name, flag in every.items() if flag not in recipe.flags]
        refused = [flag for flag in (*DATA_FLAGS, *run_flags()) if flag.name in recipe.refused]
        if wrong := _given(args, [*other, *refused]):
            parser.error(f"--model {model} does not take {', '.join(wrong)}")

    import torch

    from ..architectures import builders
    from ..models.building import without_values
    from ..runtime.device import choose_device
    from ..training.state import check_state

    if args.folder.exists() and not args.folder.is_dir():
        raise ConfigError(
            "is a file; FOLDER is where the model is kept, --data says what to train on", argument=args.folder
        )
    device = choose_device(args.device)
    if args.resume:
        run, dataset = _earlier_run(args, every.values())
    else:
        run, dataset = _new_run(args, recipe, device)
    family, recipe = _recipe_of(run, args.folder)
    built = builders(run.trained())
    with without_values():
        planned = torch.nn.ModuleDict({name: build() for name, build in built.items()})
    if args.resume:  # the run says how large its networks are: see that its weights are, before they get room
        check_state(args.folder, planned, run)
    _check_memory(planned, run, device)
    torch.manual_seed(run.config.seed)  # the initial weights
    with torch.device("cpu"):  # whatever PyTorch's default device is
        networks = torch.nn.ModuleDict({name: build() for name, build in built.items()})
    kind = "images" if len(dataset.shape) == 3 else "rows of"
    names = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    print(
        f"{len(dataset)} {kind} {'x'.join(map(str, dataset.shape))}{names}; "
        f"{sum(p.numel() for p in networks.parameters()):,} parameters on {device}"
    )
    _train(args, family, recipe, networks, run, dataset, device)
    print(f"saved {args.folder}; use it with: {family.use.format(shlex.quote(str(args.folder)))}")
    return 0


def _train(
    args: argparse.Namespace,
    family: Family,
    recipe: Recipe,
    networks: nn.ModuleDict,
    run: Run,
    dataset: Dataset,
    device: torch.device,
) -> None:
    from ..training import loop
    from ..training.run import saved_run

    objective = recipe.objective(networks, run, dataset)
    preview = previewer(family, recipe, args.folder, run.spec, dataset) if recipe.previews else None
    try:
        loop.train(
            networks,
            run,
            objective,
            dataset,
            args.folder,
            device=device,
            resume=args.resume,
            changed_data=args.changed_data,
            progress=not args.quiet,
            on_preview=preview,
        )
    except KeyboardInterrupt as stop:
        if saved_run(args.folder) is not None:
            stop.args = (*stop.args, f"go on with: fastgen train {shlex.quote(str(args.folder))} --resume")
        raise


def _recipe_of(run: Run, folder: Path) -> tuple[Family, Recipe]:
    """The family and the recipe of a run's model. Raises CheckpointError."""
    architecture = next(iter(run.spec.parts.values())).architecture
    family = FAMILIES.get(run.spec.engine)
    if family is None or architecture not in family.recipes:
        raise CheckpointError(
            f"its run makes a {run.spec.engine} model of a {architecture}, which nothing trains",
            argument=folder,
        )
    recipe = family.recipes[architecture]
    if recipe.parts is not None and len(run.trained().parts) != recipe.parts:
        raise CheckpointError(
            f"its run trains {len(run.trained().parts)} networks, a {architecture} is {recipe.parts}",
            argument=folder,
        )
    return family, recipe


def _check_memory(networks: nn.ModuleDict, run: Run, device: torch.device) -> None:
    """Whether `networks` (on `meta`) can be trained in the machine's memory at all. Raises ConfigError.

    On a GPU running out is an error that can be caught; a CPU's system ends the process without a word.
    """
    if device.type != "cpu":
        return
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    copies = {
        name: COPIES if name in run.spec.parts else COPIES - 1 for name in counts
    }  # auxiliary: no average
    needed = 4 * sum(copies[name] * count for name, count in counts.items())  # bytes, float32
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise ConfigError(
            f"training {sum(counts.values()):,} parameters, with gradients, moments and averages, takes "
            f"{needed / 2**30:.1f} GiB, this machine has {present / 2**30:.1f}; take a smaller network, as by --widths",
            argument="train",
        )


def _given(args: argparse.Namespace, flags: Iterable[Flag]) -> list[str]:
    """The names of those of `flags` that were given."""
    return [flag.name for flag in flags if hasattr(args, flag.dest)]


def _earlier_run(args: argparse.Namespace, own: Iterable[Flag]) -> tuple[Run, Dataset]:
    """The run to resume, and the data it began with, images at the size they had."""
    from ..training.run import saved_run

    names = ["--model"] if args.model is not None else []
    if names := [*names, *_given(args, [*run_flags(), *DATA_FLAGS, *own])]:
        raise ConfigError("a resumed run keeps its own settings; leave it out", argument=", ".join(names))
    run = saved_run(args.folder)
    if run is None:
        raise CheckpointError("no training run to resume in it", argument=args.folder)
    _recipe_of(run, args.folder)
    shape = run.data["shape"]
    of_images = {"size": (shape[1], shape[2]), "channels": shape[0]} if len(shape) == 3 else {}
    return run, _load(run.config, class_names=run.data["class_names"], **of_images)


def _new_run(args: argparse.Namespace, recipe: Recipe, device: torch.device) -> tuple[Run, Dataset]:
    from .. import __version__
    from ..training import data
    from ..training.folders import check_name
    from ..training.run import Run
    from ..training.settings import RunConfig

    chosen = {**vars(args), "flip": hasattr(args, "flip")}
    if "data" not in chosen:
        raise ConfigError(
            "says what to train on (a folder, an IDX, NPZ, NPY or CSV file, or "
            f"{', '.join(f'`{name}`' for name in data.NAMED)})",
            argument="--data",
        )
    fields = [*RUN_OPTIONS, *PATHS, "subset", "side_by_side", "background", "flip"]
    chosen = {name: chosen[name] for name in fields if name in chosen}
    for name in (n for n in PATHS if n in chosen):
        if (
            name != "data" or chosen[name] not in data.NAMED
        ):  # absolute, so that the run can be resumed from any folder
            chosen[name] = str(Path(chosen[name]).absolute())
        check_name(chosen[name], f"--{name}")
    config = from_dict(RunConfig, {**recipe.run_defaults, **chosen}, "train").settled(device)
    dataset = _load(config, **given(args, [flag for flag in DATA_FLAGS if flag.dest in ("size", "channels")]))
    if config.flip and len(dataset.shape) != 3:
        raise ConfigError("mirrors images; rows of a table have no mirror image", argument="--flip")
    spec = recipe.new_spec(args, dataset, config, _provenance(config, __version__))
    return Run(config, spec, data.describe(dataset), recipe.auxiliary(args, dataset, config)), dataset


def _load(config: RunConfig, **known: Any) -> Dataset:
    """The run's data; `known`: size and channels of images, or the classes, where they are known. Raises DataError."""
    from ..training import data

    return data.load(
        config.data,
        labels=config.labels,
        target=config.target,
        side_by_side=config.side_by_side,
        background=config.background,
        subset=None if config.subset is None else (config.subset[0], config.subset[1]),
        **known,
    )


def _provenance(config: RunConfig, version: str) -> dict[str, Any]:
    """Where the model comes from, as its config says it; no path of this machine."""
    run = {k: v for k, v in to_dict(config).items() if k not in PATHS and (k != "side_by_side" or v)}
    return {"trained_with": f"fastgen {version}", "data": Path(config.data).name, "run": run}
