"""``fastgen export``: a model as ONNX files."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from .arguments import add_hub


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="a model as ONNX files",
        description="Write a model as ONNX files: every form of its network and, of diffusion models, one step of any "
        "solver (step.onnx), all steps from seeds to pictures (sampler.onnx) and solvers as tables/*.json. "
        "fastgen.onnx_runtime runs them without PyTorch.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder, zoo:NAME or hub id")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--what",
        default="all",
        help="model, step, sampler, tables, server (a model repository of the Triton Inference Server), or all (but "
        "server; the default)",
    )
    parser.add_argument("--precision", default="fp32", help="fp32 (default) or fp16")
    parser.add_argument("--opset", type=int, help="of ONNX (default 20)")
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="SOLVER:STEPS",
        help="a solver beside the usual ones, as unipc:12 (may be repeated)",
    )
    parser.add_argument(
        "--check", action="store_true", help="run each file in onnxruntime beside the reference"
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_hub(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export and print what was written; returns the exit code."""
    from ..api import export
    from ..converters.onnx import OPSET

    written = export(
        args.model,
        args.output,
        what=args.what,
        precision=args.precision,
        opset=OPSET if args.opset is None else args.opset,
        tables=args.table,
        check=args.check,
        force=args.force,
        revision=args.revision,
        local_files_only=args.local_files_only,
    )
    if args.json:
        print(json.dumps({**dataclasses.asdict(written), "folder": str(written.folder)}))
        return 0
    tables = [name for name in written.files if name.startswith("tables/")]
    lines = [f"{name}: {size / 1e6:.2f} MB" for name, size in written.files.items() if name not in tables]
    if tables:
        lines.append(f"{len(tables)} tables, {tables[0]} to {tables[-1]}")
    lines += [f"checked: {line}" for line in written.checks]
    lines += [f"left out: {line}" for line in written.left_out]
    print("\n".join([*lines, f"{written.folder}: written"]))
    return 0
