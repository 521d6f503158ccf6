"""``python -m fastgen.bench kernels``."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastgen_kernels import OPS

from ..commands.info import doctor
from ..errors import FastgenError
from ..runtime.device import DTYPES, choose_device
from . import chains, kernels
from .race import LAUNCHED, RIVALS

WIDTHS = (15, 16, 9, 6, 10, 23, 6, 8, 8)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m fastgen.bench",
        description="Speed side by side with plain PyTorch, in one process, after a check of every result.",
    )
    suites = top.add_subparsers(metavar="SUITE", required=True)
    suite = suites.add_parser(
        "kernels",
        help="the fused operations",
        description="Every production case of the fused operations, and PatchGAN as a chain of them: error as a "
        "fraction of its bound, time with quartiles, share of a copy's bandwidth in this run, and the rivals' time "
        "over fastgen's. Exit code 1 where a result is wrong.",
    )
    suite.add_argument(
        "--op", action="append", default=[], choices=list(OPS), help="only this operation; repeatable"
    )
    suite.add_argument(
        "--case", action="append", default=[], help="only this case, also one for tests; repeatable"
    )
    suite.add_argument(
        "--dtype",
        action="append",
        default=[],
        choices=list(DTYPES),
        help="default: float32, and bfloat16 on CUDA",
    )
    suite.add_argument(
        "--against",
        default="eager,compile",
        help="rivals, comma-separated: eager, compile (default both), or none",
    )
    suite.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    suite.add_argument(
        "--rounds", type=int, default=9, help="turns that each rival gets (default 9, at least 3)"
    )
    suite.add_argument("--json", type=Path, metavar="FILE", help="write the results here as well")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the suite that `arguments` name; returns the exit code."""
    top = parser()
    args = top.parse_args(arguments)
    against = [] if args.against == "none" else args.against.split(",")
    if unknown := sorted(set(against) - set(RIVALS)):
        top.error(f"--against: unknown {', '.join(unknown)}; known: {', '.join(RIVALS)}, none")
    if args.rounds < 3:
        top.error("--rounds: at least 3, for quartiles")
    names = {case.name for op in OPS.values() for case in op.cases if not args.op or op.name in args.op}
    if unknown := sorted(set(args.case) - names):
        top.error(f"--case: unknown {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    try:
        device = choose_device(args.device)
        return _kernels(args, device, against)
    except (FastgenError, OSError) as error:
        print(f"fastgen.bench: error: {error}", file=sys.stderr)
        return 1


def _kernels(args: argparse.Namespace, device: torch.device, against: list[str]) -> int:
    if "compile" in against and (missing := _no_compiler(device)):
        print(f"without compile: {missing}", file=sys.stderr)
        against = [name for name in against if name != "compile"]
    names = args.dtype or (["float32", "bfloat16"] if device.type == "cuda" else ["float32"])
    facts = environment(device)
    shown = [*against, LAUNCHED] if device.type == "cuda" and "eager" in against else against
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(_aligned((*kernels.HEAD, *shown)))
    rows: list[kernels.Row] = []
    copy = kernels.copy_bandwidth(device, args.rounds)
    how: dict[str, Any] = {"copy": copy, "dtypes": [DTYPES[name] for name in names]}
    how |= {"against": against, "rounds": args.rounds}
    measured = kernels.run(device, ops=args.op, cases=args.case, **how)
    if not args.op and not args.case:
        measured = itertools.chain(measured, chains.run(device, **how))
    for row in measured:
        print(_aligned(kernels.line(row, shown)), flush=True)
        rows.append(row)
        if args.json is not None:  # after every row: what was measured is kept, whatever comes
            results = {"environment": facts, "copy_bytes_per_second": copy}
            results["kernels"] = [row.to_dict() for row in rows]
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    wrong = [f"{row.op} {row.case} {row.dtype}" for row in rows if row.seconds is None]
    print(f"wrong: {', '.join(wrong)}" if wrong else f"{len(rows)} cases, every result within its bound")
    return 1 if wrong else 0


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures belong to."""
    found = doctor()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else found["platform"],
        "threads": torch.get_num_threads(),
        **{name: found["versions"][name] for name in ("fastgen", "torch", "triton")},
        "python": found["python"],
        "features": " ".join(found["cpu"]["features"]),
        **(_gpu(device) if device.type == "cuda" else {}),
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    """CUDA's version, the driver's and the clocks, as far as they can be read."""
    found: dict[str, Any] = {"cuda": torch.version.cuda}
    if tool := shutil.which("nvidia-smi"):
        query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem"
        command = [tool, f"--id={device.index or 0}", f"--query-gpu={query}", "--format=csv,noheader"]
        out = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        found |= dict(zip(query.split(","), out.split(", "), strict=False))
    return found


def _no_compiler(device: torch.device) -> str:
    """Why torch.compile cannot run here, or ""."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    return "" if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler"


def _aligned(cells: Sequence[str]) -> str:
    widths = [*WIDTHS, *[8] * (len(cells) - len(WIDTHS))]
    return " ".join(
        c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    )


if __name__ == "__main__":
    sys.exit(main())
