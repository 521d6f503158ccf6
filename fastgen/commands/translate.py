"""``fastgen translate``: images through a network from images to images, such as pix2pix."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .arguments import add_model, positive
from .image_task import add_image_files, load_engine, plan, record_of, run_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from ..image_files import ImageFile

MODEL = "zoo:pix2pix-mnist"
MAX_TRIES = 10_000  # of an image


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
        choices=("instance", "running"),
        help="statistics of batch norms: of each image, or those of training (default: as the model says)",
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
    facts = engine.describe()
    random = args.best_of is not None or args.seed is not None or args.dropout
    random = random or (args.dropout is None and facts["defaults"]["dropout"])
    seed = (args.seed or 0) if random else None
    mode = args.norm_mode or facts["defaults"]["norm_mode"]
    _check(args, facts, seed)

    def work(files: list[ImageFile]) -> Sequence[Tensor]:
        images = [file.tensor() for file in files]
        made: Sequence[Tensor]
        if args.best_of is None:
            seeds = None if seed is None else [seed] * len(images)
            made = engine.translate(images, seeds=seeds, dropout=seed is not None, norm_mode=mode)
        else:
            made = engine.best_of(images, args.best_of, seed=seed, norm_mode=mode).images
        return made

    settings = {"command": "translate", "seed": seed, "best_of": args.best_of, "norm_mode": mode}
    return run_tasks(
        args,
        tasks,
        work,
        record=record_of(engine, settings),
        what=args.model,
        device=engine.device,
        channels=facts["generator"]["in_channels"],
    )


def _check(args: argparse.Namespace, facts: Mapping[str, Any], seed: int | None) -> None:
    """Whether the model can do what the flags ask for, before any image is read. Raises ConfigError."""
    from ..engines.arguments import MAX_SEED

    generator = facts.get("generator")
    if generator is None:
        raise ConfigError("has a discriminator alone, which translates nothing", argument=args.model)
    for name in ("in_channels", "out_channels"):
        if generator[name] not in (1, 3):
            raise ConfigError(
                f"its {name} are {generator[name]}: no grey or RGB images, which files hold; use it from Python",
                argument=args.model,
            )
    if seed is not None and not facts["dropout"]:
        flag = "--best-of" if args.best_of is not None else "--dropout" if args.dropout else "--seed"
        raise ConfigError("the model has no dropout: nothing about it is random", argument=flag)
    last = MAX_SEED + 1 - (args.best_of or 1)
    if seed is not None and not 0 <= seed <= last:
        raise ConfigError(f"expected a number from 0 to {last}, got {seed}", argument="--seed")
    if args.best_of is not None and (args.best_of > MAX_TRIES or "discriminator" not in facts):
        why = (
            f"expected {MAX_TRIES} at most" if "discriminator" in facts else "the model has no discriminator"
        )
        raise ConfigError(why, argument="--best-of")
