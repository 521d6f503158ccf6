"""``fastgen upscale``: images enlarged by a super-resolution network."""

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

MODEL = "zoo:srgan-x4"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "upscale",
        help="images enlarged by a super-resolution network",
        description="Enlarges image files, and folders of them, of any size, by SRGAN, MSRResNet, RRDBNet (ESRGAN, "
        "Real-ESRGAN) or SRVGG. Transparency and EXIF are kept. What is done already is skipped, so that a run that "
        "was killed goes on; a file that fails is reported, and the others are done.",
    )
    add_image_files(parser)
    add_model(parser, default=MODEL)
    parser.add_argument(
        "--scale",
        "--outscale",
        type=_factor,
        dest="scale",
        metavar="N",
        help="of both sides (default: the model's own, else its result is resized, bicubic)",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        metavar="N",
        help="pixels of the input on a side that are made at a time; 0: all at once (default: by the memory)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=_overlap,
        metavar="N",
        help="pixels around a tile that the network sees, too, or `exact`: its receptive field (default: exact where "
        "that is at most a quarter of the tile, else 32)",
    )
    parser.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="read images of up to N pixels (default 67108864: larger ones may be bombs)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Enlarge what `args` name; returns the exit code."""
    tasks = plan(args)
    engine = load_engine(args, "upscale")
    facts = engine.describe()
    own, (channels, made) = facts["scale"], facts["channels"]
    if channels not in (1, 3) or made != channels:
        raise ConfigError(
            f"its network takes {channels} channels and makes {made}; files have 1 or 3", argument=args.model
        )
    scale = args.scale or own
    try:
        tiles = engine.check_tiles(args.tile, args.tile_overlap)
    except ConfigError as error:
        raise ConfigError(error.reason, argument=f"--{(error.argument or '').replace('_', '-')}") from error

    def work(files: list[ImageFile]) -> Sequence[Tensor]:
        whole = all(not file.pixels.is_floating_point() for file in files)
        images = [file.pixels if whole else file.tensor() for file in files]
        found: Sequence[Tensor] = engine.upscale(
            images, scale, tile=args.tile, tile_overlap=args.tile_overlap, output_type="uint8"
        )
        return found

    settings = {"command": "upscale", "scale": scale}
    if not tiles.exact:  # results depend on them
        settings |= {"tile": tiles.tile, "halo": tiles.halo}
    return run_tasks(
        args,
        tasks,
        work,
        record=record_of(engine, settings),
        what=f"{args.model}, scale {scale:g}",
        device=engine.device,
        channels=channels,
        max_pixels=args.max_pixels,
        factor=scale,
    )


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value <= 32:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 32, got {text}")
    return value


def _tile(text: str) -> int | str | None:
    return "auto" if text == "auto" else int(text) or None


def _overlap(text: str) -> int | str:
    return text if text == "exact" else int(text)
