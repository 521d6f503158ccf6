"""``fastgen inpaint``: a part of images drawn anew by a diffusion model, the rest kept as it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .arguments import positive
from .given_image import add_drawing, drawn, mask_of
from .image_task import digest, plan

if TYPE_CHECKING:
    from torch import Tensor


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "inpaint",
        help="fill in a part of images with a diffusion model",
        description="Fills in the part of image files, and of folders of them, that is white in a mask; where it is "
        "black every pixel stays as it is. Images and mask are resized to the model's size. --sheet writes them before "
        "and after. What is done already is skipped; a file that fails is reported, and the others are done.",
    )
    add_drawing(parser)
    parser.add_argument(
        "--mask", type=Path, required=True, metavar="FILE", help="an image, white where to fill in"
    )
    parser.add_argument(
        "--method",
        choices=("replace", "repaint"),
        default="repaint",
        help="repaint goes back and forth, so that the parts fit each other; replace takes a fifth of the evaluations "
        "(default repaint)",
    )
    parser.add_argument(
        "--jump-length", type=positive, help="of repaint: steps that are done again (default: a fifth)"
    )
    parser.add_argument("--resamples", type=positive, help="of repaint: times that they are done (default 5)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fill in what `args` name; returns the exit code."""
    for name in ("jump_length", "resamples"):
        if args.method == "replace" and getattr(args, name) is not None:
            raise ConfigError(
                "has an effect only with --method repaint", argument=f"--{name.replace('_', '-')}"
            )
    tasks = plan(args, [args.mask])
    from ..image_files import read_image_file

    read_image_file(args.mask, 1)  # before a model is loaded

    def make(engine: Any, images: Tensor, arguments: dict[str, Any]) -> Tensor:
        made: Tensor = engine.inpaint(
            images,
            mask_of(args.mask, engine),
            method=args.method,
            jump_length=args.jump_length,
            resamples=args.resamples,
            **arguments,
        )
        return made

    settings = {
        "command": "inpaint",
        "mask": digest(args.mask),
        "method": args.method,
        "jump_length": args.jump_length,
        "resamples": args.resamples,
    }
    return drawn(args, tasks, settings, make)
