"""``fastgen traverse``: what each latent of a variational autoencoder does, on a sheet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import ConfigError
from .arguments import add_model, integer_ranges, positive
from .image_task import load_engine
from .outputs import add_reporting, check_free, writing
from .reconstruct import MODEL, chosen_label

ROWS = 32  # latents that are shown where none are named
STEPS, LIMIT = 8, 3.0


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "traverse",
        help="a sheet that shows what each latent of a VAE does",
        description="A row for each latent, which goes from -LIMIT to LIMIT while the others stay: at the means of "
        "the prior, or at those of an image.",
    )
    add_model(parser, default=MODEL)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("traverse.png"), help="the sheet (default %(default)s)"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="whose other latents are taken")
    parser.add_argument(
        "--dimensions",
        type=integer_ranges,
        metavar="0-9",
        help=f"which latents (default all, {ROWS} at most)",
    )
    parser.add_argument("--group", type=int, default=0, help="of latents, the top one is 0 (default)")
    parser.add_argument("--steps", type=positive, default=STEPS, help=f"images a row (default {STEPS})")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"how far (default {LIMIT:g})")
    parser.add_argument("--label", help="the class, name or number, of a model that knows classes")
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the sheet; returns the exit code."""
    import torch
    from torch.nn import functional as F

    from ..image_files import read_image_file
    from ..images import FORMATS, save_grid

    if args.out.suffix.lower() not in FORMATS:
        raise ConfigError(f"expected a name that ends in {', '.join(FORMATS)}", argument="--out")
    check_free([args.out], args.overwrite)
    engine = load_engine(args, "vae")
    if not engine.images or engine.shape[0] not in (1, 3):
        raise ConfigError("models no grey or RGB images", argument=args.model)
    if not 0 <= args.group < engine.vae.groups:
        raise ConfigError(f"expected 0 to {engine.vae.groups - 1}, got {args.group}", argument="--group")
    label = chosen_label(engine, args.label)
    latents = engine.vae.latent_shapes[args.group][0]
    rows = list(range(min(latents, ROWS))) if args.dimensions is None else args.dimensions
    if wrong := [row for row in rows if row >= latents]:
        raise ConfigError(f"expected 0 to {latents - 1}, got {wrong[0]}", argument="--dimensions")
    x = None
    if args.image is not None:
        image = read_image_file(args.image, engine.shape[0]).tensor()[None]
        x = F.interpolate(image, engine.shape[1:], mode="bilinear", antialias=True, align_corners=False)
    images = [
        engine.traverse(row, x=x, group=args.group, steps=args.steps, limit=args.limit, labels=label)
        for row in rows
    ]
    with writing([args.out], "images", None):
        save_grid(torch.cat(images), args.out, columns=args.steps)
    if not args.json:
        span = f"{-args.limit:g} to {args.limit:g}"
        print(f"{len(rows)} of {latents} latents, {args.steps} steps from {span} -> {args.out}")
    else:
        print(
            json.dumps(
                {"files": [str(args.out)], "dimensions": rows, "group": args.group, "steps": args.steps}
            )
        )
    return 0
