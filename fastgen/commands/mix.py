"""``fastgen mix``: a grid of images with the coarse styles of one sample and the fine ones of another."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .arguments import add_model, integer_ranges, positive
from .image_task import load_engine
from .interpolate import add_truncation, chosen_labels, truncation
from .layout import CELL
from .outputs import add_reporting, check_places, report, summary, writing


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "mix",
        help="a grid of images that mix the styles of a style-based GAN's samples",
        description="Writes a sheet: samples along the left edge and the top, and where a row meets a column the image "
        "of the row's sample whose styles --layers are those of the column's.",
    )
    add_model(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, help="the sheet: name.png, .jpg or .webp")
    parser.add_argument(
        "--rows", type=integer_ranges, default=list(range(6)), metavar="0-5", help="seeds (default 0-5)"
    )
    parser.add_argument(
        "--columns",
        type=integer_ranges,
        default=list(range(100, 108)),
        metavar="100-107",
        help="seeds (default 100-107)",
    )
    parser.add_argument(
        "--layers",
        type=integer_ranges,
        metavar="A-B",
        help="numbers of the styles that columns give, 0 the coarsest (default: the coarser half)",
    )
    parser.add_argument(
        "--labels", help="of a class-conditional model: classes, names or numbers, of the rows in turn"
    )
    parser.add_argument("--column-labels", help="the same of the columns (default: as --labels)")
    add_truncation(parser)
    parser.add_argument("--scale", type=positive, help="enlarge images by this whole factor")
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the grid; returns the exit code."""
    import torch

    from ..images import save_grid, sheet_size
    from .layout import is_sheet

    if not is_sheet(args.out):
        raise ConfigError("expected a name that ends in .png, .jpg, .jpeg or .webp", argument="--out")
    check_places(args.out, None, args.overwrite)
    engine = load_engine(args, "gan")
    check_style_based(engine, args.model)
    rows, columns = args.rows, args.columns
    scale = args.scale or max(1, -(-CELL // engine.shape[2]))
    across = len(columns) + 1
    sheet_size(across * (len(rows) + 1), engine.shape[1:], columns=across, scale=scale)
    options = truncation(args, engine, 1)
    layers = list(range((engine.styles + 1) // 2)) if args.layers is None else args.layers
    of_rows = in_turn(engine, args.labels, len(rows))
    of_columns = in_turn(
        engine, args.labels if args.column_labels is None else args.column_labels, len(columns)
    )
    started = time.perf_counter()
    left = engine.sample(seeds=rows, labels=of_rows, **options)
    top = engine.sample(seeds=columns, labels=of_columns, **options)
    mixed = engine.mix(
        [row for row in rows for _ in columns],
        list(columns) * len(rows),
        layers,
        labels=None if of_rows is None else [label for label in of_rows for _ in columns],
        labels_b=None if of_columns is None else of_columns * len(rows),
        **options,
    )
    seconds = time.perf_counter() - started
    corner = torch.full_like(top[:1], -1.0)
    body = torch.cat([left[:, None], mixed.unflatten(0, (len(rows), len(columns)))], dim=1)
    images = torch.cat([corner, top, body.flatten(0, 1)])
    with writing([args.out], "images", None):
        save_grid(images.cpu(), args.out, columns=across, scale=scale)
    facts = {"model": args.model, "rows": rows, "columns": columns, "layers": layers, "styles": engine.styles}
    how = f"styles {', '.join(map(str, layers))} of {engine.styles} from the columns"
    said = summary(len(images) - 1, "image", how, engine.device, seconds, [args.out])
    report(facts, said, as_json=args.json, device=engine.device, files=[args.out], seconds={"mix": seconds})
    return 0


def check_style_based(engine: Any, model: str) -> None:
    """Raises ConfigError for a GAN without styles."""
    if not engine.style_based:
        raise ConfigError(
            "its generator has no styles; this command takes StyleGAN and StyleGAN2", argument=model
        )


def in_turn(engine: Any, text: str | None, count: int) -> list[str | int | None] | None:
    """`count` labels, those that `text` names in turn; None of a model without classes. Raises ConfigError."""
    labels = chosen_labels(engine, text)
    return None if engine.classes is None else [labels[i % len(labels)] for i in range(count)]
