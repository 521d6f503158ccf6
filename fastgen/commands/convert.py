"""``fastgen convert``: other projects' models to fastgen's form and back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..families.values import named_values
from .arguments import add_hub


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "convert",
        help="another project's model to fastgen's form, or back",
        description="Write a model (fastgen's or, for instance, a DDPMPipeline of diffusers) into a folder, in "
        "fastgen's form or another, and say what was mapped, renamed, assumed and ignored.",
    )
    parser.add_argument("source", metavar="SRC", help="folder, file of weights, zoo:NAME or hub id")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to write")
    parser.add_argument("--to", default="fastgen", help="fastgen (default) or diffusers")
    parser.add_argument(
        "--variant",
        help="another set of weights of the source, as fp16; of a checkpoint with several, as model (beside ema)",
    )
    parser.add_argument(
        "--dtype", help="of the weights written: float32, float16, bfloat16 (default: as they are)"
    )
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what a file of weights does not say, as scale_map=exp (may be repeated); the report names what "
        "was assumed",
    )
    add_hub(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a model of the same form")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert and print the report; returns the exit code."""
    import dataclasses

    from ..api import convert

    report = convert(
        args.source,
        args.destination,
        to=args.to,
        variant=args.variant,
        dtype=args.dtype,
        revision=args.revision,
        local_files_only=args.local_files_only,
        overwrite=args.overwrite,
        assume=named_values(args.assume, "--assume"),
    )
    if args.json:
        print(json.dumps({**dataclasses.asdict(report), "folder": str(args.destination)}))
    else:
        print("\n".join([*report.lines(), f"{args.destination}: written"]))
    return 0
