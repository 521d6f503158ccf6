"""``python -m fastgen.bench``: the command line."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastgen_kernels import OPS

from ..commands.arguments import positive
from ..errors import FastgenError
from ..families.values import integers
from ..runtime.device import DTYPES, choose_device
from . import plots, suites, tables
from .baselines import BASELINES, missing
from .contest import LAUNCHED, How
from .environment import environment
from .results import Results
from .timing import CLOCKS, LEAST_ROUNDS

TOUR_SECONDS = 100.0  # with what is begun when it ends, under three minutes on two cores


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m fastgen.bench",
        description="Speed side by side with other ways to do the same work, in one process, after a check of every "
        "result. Without a suite: a tour of about two minutes. Exit code 1 where a result is wrong, or slower than "
        "--compare's.",
    )
    add = top.add_argument
    several: dict[str, Any] = {"action": "append", "default": []}
    add("suite", nargs="?", default="tour", choices=["tour", *suites.SUITES, "all"])
    add(
        "--model",
        **several,
        help="a folder, zoo:NAME, hub id, random:cifar10 or random:celebahq256; repeatable",
    )
    add("--batch", type=integers, default=(), help="samples per call, comma-separated")
    add("--steps", type=positive, help="of a solver; default: the model's")
    add("--dtype", **several, choices=list(DTYPES), help="repeatable")
    add(
        "--against",
        help=f"baselines, comma-separated: {', '.join(BASELINES)}, or none; default: eager and diffusers; eager and "
        "compile in the kernels suite",
    )
    add("--op", **several, choices=list(OPS), help="kernels: only this operation; repeatable")
    add("--case", **several, help="kernels: only this case, also one for tests; repeatable")
    add("--device", default="auto", help="auto, cpu or cuda[:N]")
    add("--rounds", type=int, default=9, help="turns that each baseline gets (default 9, at least 3)")
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for a machine that others use, too (CUDA is timed by events)",
    )
    add(
        "--seconds",
        type=_positive,
        help=f"time for the tour (default {TOUR_SECONDS:g}) or a suite (default: as long as it takes); what does not "
        "fit is left out by name",
    )
    add("--json", type=Path, metavar="FILE", help="write the results here as well")
    add("--compare", type=Path, metavar="OLD.json", help="exit code 1 where slower than these results")
    add(
        "--threshold",
        type=_positive,
        default=tables.THRESHOLD * 100,
        help="per cent more time that --compare allows (default %(default)g)",
    )
    add("--plot", type=Path, metavar="DIR", help="latency, images per second and roofline as PNG files")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the suite that `arguments` name; returns the exit code."""
    top = parser()
    args = top.parse_args(arguments)
    names = {case.name for op in OPS.values() for case in op.cases if not args.op or op.name in args.op}
    if unknown := sorted(set(args.case) - names):
        top.error(f"--case: unknown {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    if (args.op or args.case) and args.suite not in ("kernels", "all"):
        top.error("--op, --case: belong to the kernels suite")
    if args.suite == "tour" and (args.model or args.batch or args.steps or args.dtype):
        top.error("--model, --batch, --steps, --dtype: name a suite with them; the tour chooses its own")
    if args.rounds < LEAST_ROUNDS:
        top.error(f"--rounds: at least {LEAST_ROUNDS}, for quartiles")
    if min(args.batch, default=1) < 1:
        top.error("--batch: expected whole numbers of at least 1")
    default = "eager,compile" if args.suite == "kernels" else "eager,diffusers"
    against = list(dict.fromkeys((args.against or default).split(","))) if args.against != "none" else []
    if unknown := sorted(set(against) - set(BASELINES)):
        top.error(f"--against: unknown {', '.join(unknown)}; known: {', '.join(BASELINES)}, none")
    try:
        return _run(args, against)
    except (FastgenError, OSError) as error:
        print(f"fastgen.bench: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fastgen.bench: interrupted; --json has what was measured", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, against: list[str]) -> int:
    """Measure, printing and keeping every row as it comes; returns the exit code."""
    device = choose_device(args.device)
    old = None if args.compare is None else Results.read(args.compare)
    if args.plot is not None:
        plots.check(args.plot)
    results = Results({**environment(device), "clock": "events" if device.type == "cuda" else args.clock})
    if old is not None:
        tables.compare(old, results)  # another machine is refused at once
    print(", ".join(f"{name} {value}" for name, value in results.environment.items()))
    how = How(args.rounds, args.clock, say=lambda words: print(words, file=sys.stderr, flush=True))
    plan = suites.Plan(device, against, how, results, args.op, args.case, args.dtype, args.model, args.batch)
    plan.steps, plan.asked = args.steps, args.against is not None
    plan.seconds = args.seconds or (TOUR_SECONDS if args.suite == "tour" else math.inf)
    for name in against:
        if why := missing(name, device):
            plan.leave_out(name, why)
    plan.against = shown = [name for name in against if name not in results.left_out]
    if device.type == "cuda" and "eager" in shown:
        shown = [*shown, LAUNCHED]
    began, title = time.perf_counter(), ""
    with TemporaryDirectory() as folder:
        plan.folder = Path(folder)
        for row in suites.run(args.suite, plan):
            if row.suite != title:
                title = row.suite
                print(tables.head(title, shown))
            print(tables.line(row, shown), flush=True)
            results.rows.append(row)
            if args.json is not None:  # after every row: what was measured is kept, whatever comes
                results.write(args.json)
    return _verdict(args, results, old, time.perf_counter() - began)


def _verdict(args: argparse.Namespace, results: Results, old: Results | None, seconds: float) -> int:
    """The last lines: comparison, plots, and what is to be believed. Returns the exit code."""
    if args.json is not None:
        results.write(args.json)  # with what was left out at the end
    verdicts = [] if old is None else tables.compare(old, results, args.threshold / 100)
    if old is not None:
        print(tables.report(verdicts, args.threshold / 100))
    if args.plot is not None:
        print("plots: " + ", ".join(str(path) for path in plots.write(results, args.plot)))
    wrong = [row.title for row in results.rows if row.wrong]
    summary = [
        f"wrong: {', '.join(wrong)}" if wrong else f"{len(results.rows)} cases, every result within its bound"
    ]
    # The geometric mean of the ratios to each baseline, over all cases but fresh processes.
    for name in dict.fromkeys(name for row in results.rows for name in row.baselines):
        ratios = [r.median for row in results.rows if row.suite != "fresh" and (r := row.ratio(name))]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            summary.append(f"{mean:.2f}x {name}'s speed over {len(ratios)} cases")
    print(f"\n{'; '.join(summary)}; {seconds:.0f} s")
    return 1 if wrong or any(verdict.state == "slower" for verdict in verdicts) else 0


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
