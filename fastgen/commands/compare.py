"""``fastgen compare``: how far images are from those that they should be."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError
from .arguments import counted, one_line

if TYPE_CHECKING:
    from torch import Tensor


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="L1 and PSNR of images beside those that they should be",
        description="Compares two files, or the files of two folders that have the same names (an ending that all "
        "names of a folder have, as _A, is no part of them; suffixes may differ): mean absolute error of values in "
        "[0, 1], and PSNR in dB, the mean over images. What is transparent counts as white.",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a file, or a folder")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="a file, or a folder")
    parser.add_argument(
        "--luma",
        action="store_true",
        help="of the luma alone (BT.601), as papers on super-resolution have it",
    )
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="without N pixels at each side")
    parser.add_argument("--each", action="store_true", help="a line for each image, too")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare what `args` name; returns the exit code."""
    from ..metrics.pairs import mean, warn_of_transparency

    if args.crop < 0:
        raise ConfigError(f"expected 0 or more, got {args.crop}", argument="--crop")
    transparent: list[Path] = []
    pairs = _pairs(args.images, args.truth)
    rows = {name: _compared(args, *paths, transparent) for name, paths in pairs.items()}
    warn_of_transparency(transparent)
    found: dict[str, Any] = {
        "count": len(rows),
        **{key: mean([row[key] for row in rows.values()]) for key in ("l1", "psnr")},
    }
    if args.json:
        # JSON has no infinity: equal images have no PSNR.
        every = {name: {key: _number(value) for key, value in row.items()} for name, row in rows.items()}
        print(json.dumps({**{key: _number(value) for key, value in found.items()}, "images": every}))
        return 0
    if args.each:
        for name, row in rows.items():
            print(f"{one_line(name)}: L1 {row['l1']:.4f}, PSNR {row['psnr']:.2f} dB")
    what = "luma " if args.luma else ""
    print(f"{counted(len(rows), 'image')}: {what}L1 {found['l1']:.4f}, {what}PSNR {found['psnr']:.2f} dB")
    return 0


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pairs(images: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """The files to compare, by name. Raises ConfigError or DataError."""
    from ..image_files import SUFFIXES
    from ..training.folders import matched

    if images.is_dir() != truth.is_dir():
        raise ConfigError(f"expected two files or two folders, got {images} and {truth}", argument="TRUTH")
    return matched(images, truth, SUFFIXES) if images.is_dir() else {images.name: (images, truth)}


def _compared(
    args: argparse.Namespace, image: Path, truth: Path, transparent: list[Path]
) -> dict[str, float]:
    """L1 and PSNR; paths of files with transparency are added to `transparent`. Raises ConfigError or DataError."""
    from ..image_files import read_image_file
    from ..metrics.pairs import cropped, l1, luma, over_white, psnr

    def values(path: Path) -> Tensor:
        file = read_image_file(path, max_pixels=1 << 40)
        if file.alpha is not None:
            transparent.append(path)
        pixels = over_white(file.pixels, file.alpha)
        return cropped(luma(pixels) if args.luma else pixels, args.crop)

    found, wanted = values(image), values(truth)
    if found.shape != wanted.shape:
        sizes = ["x".join(map(str, reversed(x.shape[1:]))) for x in (found, wanted)]
        raise DataError(f"is {sizes[0]}, {truth} is {sizes[1]}: the sizes must be equal", argument=image)
    return {"l1": l1(found, wanted), "psnr": psnr(found, wanted)}
