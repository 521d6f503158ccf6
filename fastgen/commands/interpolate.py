"""``fastgen interpolate``: an animation from one sample of a GAN to others."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..families import FAMILIES
from ..families.family import given
from .arguments import add_model, integer_ranges, positive
from .image_task import load_engine
from .outputs import check_free, summary, writing

MODEL = "zoo:gan-mnist"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "interpolate",
        help="an animation from one sample of a GAN to others",
        description="Writes a GIF that goes from the sample of one seed to that of the next and back to the first, "
        "along great circles of the latents, or along straight lines of the styles. Of a class-conditional model each "
        "frame shows all --labels.",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="name.gif")
    add_model(parser, default=MODEL)
    parser.add_argument(
        "--seeds", type=integer_ranges, default=[0, 1, 2, 3], metavar="0-3,9", help="(default 0-3)"
    )
    parser.add_argument("--frames", type=positive, default=12, help="from one seed to the next (default 12)")
    parser.add_argument(
        "--space", choices=("z", "w"), default="z", help="w: straight lines of styles, of a style-based model"
    )
    parser.add_argument("--labels", help="classes, names or numbers: 0-9 or 3,7 (default: all, 10 at most)")
    add_truncation(parser)
    parser.add_argument(
        "--scale", type=positive, default=2, help="factor by which images are enlarged (default 2)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw and write; returns the exit code."""
    import torch

    from ..images import save_gif

    if len(args.seeds) < 2:
        raise ConfigError("expected at least 2", argument="--seeds")
    if args.out.suffix.lower() != ".gif" or args.out.is_dir():
        raise ConfigError(f"expected a name that ends in .gif, got {args.out}", argument="--out")
    if not args.out.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {args.out.absolute().parent}", argument=args.out)
    check_free([args.out], args.overwrite)
    engine = load_engine(args, "gan")
    seeds = [*args.seeds, args.seeds[0]]
    options, labels = truncation(args, engine, len(seeds)), chosen_labels(engine, args.labels)
    started = time.perf_counter()
    rows = [
        engine.interpolate(seeds, args.frames, space=args.space, labels=label, **options) for label in labels
    ]
    frames = torch.stack(rows, dim=1)[:-1]  # the last one is the first again
    seconds = time.perf_counter() - started
    with writing([args.out], "frames", None):
        save_gif(list(frames.cpu()), args.out, columns=min(len(labels), 5), scale=args.scale, hold=80)
    print(summary(len(frames), "frame", f"seeds {args.seeds}", engine.device, seconds, [args.out]))
    return 0


def add_truncation(parser: argparse.ArgumentParser) -> None:
    """The flags that ``fastgen sample`` has for GANs."""
    for flag in FAMILIES["gan"].flags["sample"]:
        flag.add(parser)


def truncation(args: argparse.Namespace, engine: Any, count: int) -> dict[str, Any]:
    """The values of those flags, as keyword arguments of the engine's, for `count` samples. Raises ConfigError."""
    family = FAMILIES["gan"]
    assert family.sampling is not None
    return family.sampling.of(engine).arguments(given(args, family.flags["sample"]), count)


def chosen_labels(engine: Any, text: str | None) -> list[str | int | None]:
    """The labels that ``--labels`` names, by default all, 10 at most; [None] without classes. ConfigError."""
    from ..engines.arguments import written_labels

    if engine.classes is None:
        if text is not None:
            raise ConfigError("this model has no classes", argument="--labels")
        return [None]
    if text is None:
        return list(range(min(engine.classes, 10)))
    return list(written_labels(text, engine.settings.class_names))
