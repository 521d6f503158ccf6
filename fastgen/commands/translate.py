"""``fastgen translate``: images through a network from images to images, such as pix2pix."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .arguments import add_model, positive
from .image_task import add_image_files, load_engine, plan, record_of, run_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..image_files import ImageFile

MODEL = "zoo:pix2pix-mnist"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "translate",
        help="images through a pix2pix or CycleGAN generator",
        description="Translates image files, and folders of them, with a model that `fastgen train --model "
        "unet_generator` has made, or one of pytorch-CycleGAN-and-pix2pix. What is done already is skipped; a file "
        "that fails is reported, and the others are done.",
    )
    add_image_files(parser)
    add_model(parser, default=MODEL)
    parser.add_argument(
        "--seed",
        type=int,
        help="of the dropout that is the model's noise, the same for each image; with dropout 0",
    )
    parser.add_argument(
        "--dropout",
        action=argparse.BooleanOptionalAction,
        help="dropout as noise, as the original project has it (default: as the model says, and with --seed)",
    )
    parser.add_argument(
        "--norm-mode",
        choices=("instance", "batch", "running"),
        help="statistics of batch norms: of each image, of all of a --batch, or those of training (default: as the "
        "model says)",
    )
    parser.add_argument(
        "--best-of", type=positive, metavar="N", help="of N seeds the result that the discriminator prefers"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Translate what `args` name; returns the exit code."""
    tasks = plan(args)
    if args.best_of is not None and args.dropout is False:
        raise ConfigError("needs dropout, without which all seeds give the same", argument="--best-of")
    engine = load_engine(args, "translate")
    random = args.best_of is not None or args.seed is not None or args.dropout
    random = random or (args.dropout is None and engine.describe()["defaults"]["dropout"])
    seed = (args.seed or 0) if random else None

    def work(files: list[ImageFile]) -> Sequence[Tensor]:
        images = [file.tensor() for file in files]
        if args.best_of is None:
            seeds = None if seed is None else [seed] * len(images)
            found: Sequence[Tensor] = engine.translate(
                images, seeds=seeds, dropout=args.dropout, norm_mode=args.norm_mode
            )
            return found
        best = [
            engine.best_of([image], args.best_of, seed=seed, norm_mode=args.norm_mode) for image in images
        ]
        return [tried.images[0][0] for tried in best]

    settings = {"command": "translate", "seed": seed, "best_of": args.best_of, "norm_mode": args.norm_mode}
    if args.norm_mode == "batch":
        settings["batch"] = args.batch  # results depend on it
    return run_tasks(
        args,
        tasks,
        work,
        record=record_of(engine, settings),
        what=args.model,
        device=engine.device,
        channels=engine.describe()["generator"]["in_channels"],
    )
