"""How images lie in files: each in a file of its own, or all on a sheet; and whether files can hold them so."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import bounded, from_dict
from ..errors import ConfigError
from .arguments import positive

CELL = 64  # small images are enlarged on sheets and in animations, to about this many pixels
GIF_FRAMES = 60  # more are thinned out


def add_layout(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how a sheet looks."""
    parser.add_argument("--columns", type=positive, help="images per row of the sheet")
    parser.add_argument("--scale", type=positive, help="enlarge images of a sheet by this whole factor")
    parser.add_argument("--no-captions", action="store_true", help="no labels under the images of a sheet")


def is_sheet(out: Path) -> bool:
    """Whether `out` is a file for images, by its name; a folder gets each image in a file of its own."""
    from ..images import FORMATS

    return out.suffix.lower() in FORMATS


@dataclass(frozen=True)
class Layout:
    """How images lie in a file: one by itself (`single`), or all on a sheet."""

    single: bool = False
    columns: int | None = bounded(1, 10_000, default=None)
    scale: int = bounded(1, 64, default=1)
    captions: bool = True

    @classmethod
    def chosen(cls, args: argparse.Namespace, kept: Any, width: int) -> Layout:
        """What the command line says, then the layout `kept` in the image of ``--like``, then what suits `width`."""
        layout = cls(scale=max(1, -(-CELL // width)))
        if kept is not None:
            layout = from_dict(cls, kept, f"{args.like}: layout")
        if not is_sheet(args.out):
            return cls(single=True, scale=layout.scale)
        changes = {n: getattr(args, n) for n in ("columns", "scale") if getattr(args, n) is not None}
        if args.no_captions:
            changes["captions"] = False
        return from_dict(cls, {**dataclasses.asdict(layout), **changes}, "sample")

    def check(self, out: Path, labels: tuple[int | None, ...], size: tuple[int, int]) -> None:
        """Whether the file `out` can hold the sheet of one image of `size` (H, W) per label. Raises ConfigError."""
        from ..images import FORMATS, check_side, sheet_size

        if self.single:
            if is_sheet(out) and len(labels) > 1:
                raise ConfigError(
                    f"{len(labels)} images do not fit one file without a sheet", argument="--out"
                )
            return
        captions = self.captions and any(label is not None for label in labels)
        sheet = sheet_size(len(labels), size, columns=self.columns, scale=self.scale, captions=captions)
        check_side(sheet, FORMATS[out.suffix.lower()], out)

    def check_gif(self, gif: Path, count: int, size: tuple[int, int], steps: int) -> None:
        """Whether an animation can hold `steps` sheets of `count` images. Raises ConfigError."""
        from ..images import check_frames, sheet_size

        sheet = sheet_size(count, size, columns=self.columns, scale=self.scale)
        check_frames(min(steps, GIF_FRAMES + 1), sheet, gif)
