"""``fastgen edit``: images made anew from a noisy form of themselves (image to image)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .given_image import add_drawing, drawn
from .image_task import plan

if TYPE_CHECKING:
    from torch import Tensor


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "edit",
        help="images like given ones, from a diffusion model",
        description="Makes image files, and folders of them, noisy and draws them from there with a diffusion model. "
        "Images are resized to the model's size. --sheet writes them before and after. What is done already is "
        "skipped; a file that fails is reported, and the others are done.",
    )
    add_drawing(parser)
    parser.add_argument(
        "--strength",
        type=float,
        default=0.5,
        help="above 0, up to 1: the share of the steps that are done; more keeps less of the image (default 0.5)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Edit what `args` name; returns the exit code."""
    if not 0 < args.strength <= 1:
        raise ConfigError(f"expected a number above 0, up to 1, got {args.strength}", argument="--strength")
    tasks = plan(args)

    def make(engine: Any, images: Tensor, arguments: dict[str, Any]) -> Tensor:
        made: Tensor = engine.edit(images, args.strength, **arguments)
        return made

    return drawn(args, tasks, {"command": "edit", "strength": args.strength}, make)
