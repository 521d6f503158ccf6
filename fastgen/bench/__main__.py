"""``python -m fastgen.bench``: the command line."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fastgen_kernels import OPS

from ..errors import FastgenError
from ..runtime.device import DTYPES, choose_device
from . import compare, suites, tables
from .baselines import BASELINES, missing
from .contest import LAUNCHED, How
from .environment import environment
from .results import Results, Row
from .timing import CLOCKS, LEAST_ROUNDS

TOUR_SECONDS = 100.0  # with what is begun when it ends, under three minutes on two cores


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m fastgen.bench",
        description="Speed side by side with other ways to do the same work, in one process, after a check of every "
        "result. Without a suite: a tour of about two minutes. Exit code 1 where a result is wrong, or slower than "
        "--compare's.",
    )
    top.add_argument("suite", nargs="?", default="tour", choices=["tour", *suites.SUITES, "all"])
    top.add_argument(
        "--model",
        action="append",
        default=[],
        help="a folder, zoo:NAME, hub id or random:cifar10; repeatable",
    )
    top.add_argument("--batch", type=_numbers, default=[], help="samples a call, comma-separated")
    top.add_argument("--steps", type=_count, help="of a solver; default: the model's")
    top.add_argument("--dtype", action="append", default=[], choices=list(DTYPES), help="repeatable")
    top.add_argument(
        "--against",
        help=f"baselines, comma-separated: {', '.join(BASELINES)}, or none; default: eager and diffusers; eager and "
        "compile in the kernels suite",
    )
    top.add_argument(
        "--op",
        action="append",
        default=[],
        choices=list(OPS),
        help="kernels: only this operation; repeatable",
    )
    top.add_argument(
        "--case", action="append", default=[], help="kernels: only this case, also one for tests; repeatable"
    )
    top.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    top.add_argument(
        "--rounds", type=int, default=9, help="turns that each baseline gets (default 9, at least 3)"
    )
    top.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for a machine that others use, too (CUDA is timed by events)",
    )
    top.add_argument(
        "--seconds",
        type=_positive,
        help=f"time for the tour (default {TOUR_SECONDS:g}) or a suite (default: as long as it takes); what does not "
        "fit is left out by name",
    )
    top.add_argument("--json", type=Path, metavar="FILE", help="write the results here as well")
    top.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="exit code 1 where slower than these results"
    )
    top.add_argument(
        "--threshold",
        type=_positive,
        default=compare.THRESHOLD * 100,
        help="per cent more time that --compare allows (default %(default)g)",
    )
    top.add_argument("--plot", type=Path, metavar="DIR", help="latency, images/s and roofline as PNG files")
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
    default = "eager,compile" if args.suite == "kernels" else "eager,diffusers"
    chosen = args.against or default
    against = [] if chosen == "none" else list(dict.fromkeys(chosen.split(",")))
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
    device = choose_device(args.device)
    old = None if args.compare is None else Results.read(args.compare)
    if args.plot is not None:
        from . import plots

        plots.check(args.plot)
    results = Results({**environment(device), "clock": "events" if device.type == "cuda" else args.clock})
    if old is not None:
        compare.compare(old, results)  # another machine is told at once
    print(", ".join(f"{name} {value}" for name, value in results.environment.items()))
    how = How(args.rounds, args.clock, say=lambda words: print(words, file=sys.stderr, flush=True))
    plan = suites.Plan(device, against, how, results, args.op, args.case, args.dtype, args.model, args.batch)
    plan.steps, plan.asked = args.steps, args.against is not None
    with TemporaryDirectory() as folder:
        plan.folder = Path(folder)
        return _measure(args, plan, old)


def _measure(args: argparse.Namespace, plan: suites.Plan, old: Results | None) -> int:
    """Measure, printing and keeping every row as it comes; returns the exit code."""
    device, results = plan.device, plan.results
    for name in plan.against:
        if why := missing(name, device):
            plan.leave_out(name, why)
    plan.against = [name for name in plan.against if name not in results.left_out]
    began = time.perf_counter()
    shown = [*plan.against, LAUNCHED] if device.type == "cuda" and "eager" in plan.against else plan.against
    title = ""
    for row in _rows(args, plan):
        if row.suite != title:
            title = row.suite
            print(tables.head(title, shown))
        print(tables.line(row, shown), flush=True)
        results.rows.append(row)
        if args.json is not None:  # after every row: what was measured is kept, whatever comes
            results.write(args.json)
    return _verdict(args, results, old, time.perf_counter() - began)


def _rows(args: argparse.Namespace, plan: suites.Plan) -> Iterator[Row]:
    seconds = args.seconds or (TOUR_SECONDS if args.suite == "tour" else math.inf)
    if args.suite == "tour":
        yield from suites.tour(plan, seconds)
    elif args.suite == "all":
        yield from suites.everything(plan, seconds)
    else:
        plan.until = time.perf_counter() + seconds
        yield from suites.run(args.suite, plan)
    suites.leave_waiting(plan)


def _verdict(args: argparse.Namespace, results: Results, old: Results | None, seconds: float) -> int:
    """The last lines: comparison, plots, and what is to be believed. Returns the exit code."""
    if args.json is not None:
        results.write(args.json)
    slower = False
    if old is not None:
        verdicts = compare.compare(old, results, args.threshold / 100)
        slower = any(verdict.state == "slower" for verdict in verdicts)
        print(compare.report(verdicts, args.threshold / 100))
    if args.plot is not None:
        from . import plots

        print("plots: " + ", ".join(str(path) for path in plots.write(results, args.plot)))
    wrong = [" ".join(row.key[1:]) for row in results.rows if row.wrong]
    said = (
        f"wrong: {', '.join(wrong)}" if wrong else f"{len(results.rows)} cases, every result within its bound"
    )
    print(f"\n{said}; {_faster(results)}{seconds:.0f} s")
    return 1 if wrong or slower else 0


def _faster(results: Results) -> str:
    """The geometric mean of the ratios to each baseline, over all cases but fresh processes."""
    said = ""
    baselines = dict.fromkeys(name for row in results.rows for name in row.baselines)
    for name in baselines:
        ratios = [r.median for row in results.rows if row.suite != "fresh" and (r := row.ratio(name))]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            said += f"{mean:.2f}x {name}'s speed over {len(ratios)} cases; "
    return said


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


def _numbers(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers of at least 1, comma-separated, got {text!r}"
        )
    return values


if __name__ == "__main__":
    sys.exit(main())
