"""``fastgen stylize``: images in the style of others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..zoo import EXAMPLES, example
from .arguments import add_model
from .image_task import add_image_files, digest, load_engine, plan, record_of, run_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..image_files import ImageFile

MODEL = "zoo:microast"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "stylize",
        help="images in the style of others",
        description="Gives image files, and folders of them, the style of another image: `fastgen stylize CONTENT... "
        "STYLE -o OUT`, or with --style, which may be repeated, `fastgen stylize CONTENT... --style A --style B -o "
        "OUT`. What is done already is skipped; a file that fails is reported, and the others are done. "
        f"{', '.join(f'example:{name}' for name in EXAMPLES)} are images that ship with fastgen.",
    )
    add_image_files(parser)
    add_model(parser, default=MODEL)
    parser.add_argument(
        "--style",
        type=Path,
        action="append",
        metavar="FILE",
        help="the style, instead of the last INPUT; several (may be repeated) are blended",
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="strength of the style, 0 to 1 (default 1)")
    parser.add_argument(
        "--weights", type=_numbers, metavar="A,B,...", help="of several styles (default: equal)"
    )
    parser.add_argument(
        "--preserve-color", action="store_true", help="the content's colours under the result's lightness"
    )
    parser.add_argument(
        "--mask",
        type=Path,
        action="append",
        metavar="FILE",
        help="where the style is used, white on black, scaled to each image; one for each --style, in their order",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stylise what `args` name; returns the exit code."""
    styles = _styles(args)
    masks: list[Path] = args.mask or []
    if masks and len(masks) != len(styles):
        raise ConfigError(
            f"expected one for each of {len(styles)} styles, got {len(masks)}", argument="--mask"
        )
    if args.weights is not None and len(args.weights) != len(styles):
        raise ConfigError(
            f"expected one for each of {len(styles)} styles, got {len(args.weights)}", argument="--weights"
        )
    if not 0 <= args.alpha <= 1:
        raise ConfigError(f"expected a number from 0 to 1, got {args.alpha}", argument="--alpha")
    tasks = plan(args, [*styles, *masks])
    from ..image_files import read_image_file

    pictures = [read_image_file(path) for path in styles]
    wanted = [read_image_file(path, channels=1) for path in masks]
    engine = load_engine(args, "style")
    encoded = [_encoded(engine, picture) for picture in pictures]

    def work(files: list[ImageFile]) -> Sequence[Tensor]:
        found: Any = engine.stylize(
            [file.tensor() for file in files],
            encoded,
            args.alpha,
            args.weights,
            args.preserve_color,
            [_scaled(wanted, file) for file in files] if wanted else None,
        )
        return list(found)

    settings = {
        "command": "stylize",
        "alpha": args.alpha,
        "weights": args.weights,
        "preserve_color": args.preserve_color,
        "styles": [digest(path) for path in styles],
        "masks": [digest(path) for path in masks],
    }
    what = f"{args.model}, in the style of {', '.join(path.name for path in styles)}"
    return run_tasks(args, tasks, work, record=record_of(engine, settings), what=what, device=engine.device)


def _styles(args: argparse.Namespace) -> list[Path]:
    """The images of styles; `args.inputs` are the contents from here on. Raises ConfigError."""
    args.inputs = [_path(path) for path in args.inputs]
    styles = [_path(path) for path in args.style or []]
    if not styles:
        if len(args.inputs) < 2:
            raise ConfigError(
                "no style: give it as the last INPUT, or with --style FILE", argument=args.inputs[0]
            )
        styles = [args.inputs.pop()]
    if folders := [path for path in styles if path.is_dir()]:
        raise ConfigError("is a folder; a style is one image", argument=folders[0])
    return styles


def _path(path: Path) -> Path:
    """A path, or the file of an example."""
    kind, colon, name = str(path).partition(":")
    if kind != "example" or not colon or path.exists():
        return path
    if name not in EXAMPLES:
        raise ConfigError(
            f"expected one of {', '.join(f'example:{known}' for known in EXAMPLES)}", argument=path
        )
    return example(name)


def _encoded(engine: Any, picture: ImageFile) -> Any:
    try:
        return engine.encode_style([picture.tensor()])
    except ConfigError as error:
        raise ConfigError(error.reason, argument=picture.path) from error


def _scaled(masks: list[ImageFile], file: ImageFile) -> Tensor:
    """The masks [K, H, W] in [0, 1], of the size of `file`."""
    import torch
    from torch.nn import functional as F

    scaled = [
        F.interpolate(mask.pixels.float()[None] / 255, file.size, mode="bilinear", antialias=True)[0, 0]
        for mask in masks
    ]
    return torch.stack(scaled).clamp_(0, 1)


def _numbers(text: str) -> list[float]:
    try:
        return [float(piece) for piece in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 2,1, got {text!r}") from None
