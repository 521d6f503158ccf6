"""``fastgen mix``: a grid of images with the coarse styles of one sample and the fine ones of another."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import ConfigError, renamed
from .arguments import add_model, integer_ranges, positive
from .image_task import load_engine
from .interpolate import add_truncation, chosen_labels, truncation
from .layout import CELL
from .outputs import add_reporting, check_places, report, summary, writing

FLAGS = {"truncation_psi": "--truncation", "truncation_cutoff": "--truncation-cutoff"}


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
    psi = "psi, one for all images; below 1: likelier images, less variety; none: no truncation (default: the model's)"
    add_truncation(parser, {"--truncation": psi})
    parser.add_argument("--scale", type=positive, help="enlarge images by this whole factor")
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the grid; returns the exit code."""
    import torch

    from ..engines.gan.style_request import checked_layers
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
    if "," in (getattr(args, "truncation", None) or ""):
        raise ConfigError("expected one value, which is that of all images", argument="--truncation")
    options = truncation(args, engine, 1)
    layers = list(range((engine.styles + 1) // 2)) if args.layers is None else args.layers
    of_rows = in_turn(engine, args.labels, len(rows), "--labels")
    if args.column_labels is None:
        of_columns, labels_b = in_turn(engine, args.labels, len(columns)), "--labels"
    else:
        labels_b = "--column-labels"
        of_columns = in_turn(engine, args.column_labels, len(columns), labels_b)
    with renamed({**FLAGS, "labels": "--labels"}):
        a = engine.request(seeds=rows, labels=of_rows, **options)
    with renamed({**FLAGS, "labels": labels_b}):
        b = engine.request(seeds=columns, labels=of_columns, **options)
    with renamed({"layers": "--layers"}):
        layers = checked_layers(layers, engine.styles)
    started = time.perf_counter()
    left, top = engine.draw(a), engine.draw(b)
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
    grid = {
        "rows": rows,
        "columns": columns,
        "layers": layers,
        "styles": engine.styles,
        "labels": list(a.labels),
        "column_labels": list(b.labels),
        "truncation_psi": a.truncation_psi,
        "truncation_cutoff": a.truncation_cutoff,
        "noise_mode": a.noise_mode,
    }
    with writing([args.out], "images", None):
        metadata = {**made_by(engine), "mix": grid}
        save_grid(images.cpu(), args.out, columns=across, scale=scale, metadata=metadata)
    facts = {"model": args.model, **grid}
    how = f"styles {', '.join(map(str, layers))} of {engine.styles} from the columns"
    said = summary(len(images) - 1, "image", how, engine.device, seconds, [args.out])
    report(facts, said, as_json=args.json, device=engine.device, files=[args.out], seconds={"mix": seconds})
    return 0


def made_by(engine: Any) -> dict[str, Any]:
    """What the engine's sheets say of the model, without a request, by which ``sample --like`` would draw samples."""
    kept = engine.metadata(engine.request(1, labels=None if engine.classes is None else 0))
    return {name: value for name, value in kept.items() if name != "request"}


def check_style_based(engine: Any, model: str) -> None:
    """Raises ConfigError for a GAN without styles."""
    if not engine.style_based:
        raise ConfigError(
            "its generator has no styles; this command takes StyleGAN and StyleGAN2", argument=model
        )


def in_turn(
    engine: Any, text: str | None, count: int, flag: str | None = None
) -> list[str | int | None] | None:
    """`count` labels, those that `text` names in turn; None of a model without classes.

    flag: that `text` is of, which must not name more labels than `count`; None: it may. Raises ConfigError.
    """
    with renamed({"--labels": flag or "--labels", "labels": flag or "--labels"}):
        labels = chosen_labels(engine, text)
    if flag is not None and text is not None and len(labels) > count:
        raise ConfigError(f"{len(labels)} labels for {count} images", argument=flag)
    return None if engine.classes is None else [labels[i % len(labels)] for i in range(count)]
