"""docs/benchmarks.md and its plots from bench/results/*.json: `python -m bench.report`.

`python -m bench.report RESULTS.jsonl ...` first makes bench/results/DEVICE.json of a run by bench.gpu_run, or of
several on one device, the later ones last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import gpu_record
from bench.gpu_stages import stage
from fastgen.bench import plots, tables
from fastgen.bench.results import FORMAT, Results

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
MARK = "<!-- made by python -m bench.report: what follows is overwritten -->\n"


def recorded(folder: Path = FOLDER) -> dict[str, Results]:
    """The results of `python -m fastgen.bench --json` by file name; other files there are not of that kind."""
    paths = [
        path for path in sorted(folder.glob("*.json")) if json.loads(path.read_text()).get("format") == FORMAT
    ]
    return {path.stem: Results.read(path) for path in paths}


def page(results: dict[str, Results]) -> str:
    """Tables of everything, one section per machine."""
    return "".join(section(name, found) for name, found in results.items())


def section(name: str, results: Results) -> str:
    """One machine's header, plots and tables."""
    here = ", ".join(f"{key} {value}" for key, value in results.environment.items())
    ceilings = ", ".join(
        f"copy {rate / 1e9:.3g} GB/s" if key == "copy" else f"matrix product {key} {rate / 1e12:.3g} TFLOP/s"
        for key, rate in results.ceilings.items()
    )
    lines = [f"\n## {name}\n\n{here}.\n"]
    if ceilings:
        lines.append(f"\nCeilings in this run: {ceilings}.\n")
    for suite in tables.COLUMNS:
        rows = [row for row in results.rows if row.suite == suite]
        if not rows:
            continue
        baselines = list(dict.fromkeys(baseline for row in rows for baseline in row.baselines))
        title, _, meaning = tables.TITLES[suite].partition(": ")
        lines.append(f"\n### {title.capitalize()}\n\n{meaning.capitalize()}.\n\n")
        if plot := {"kernels": "roofline", "families": "batch"}.get(suite):
            lines.append(f"![{title}](benchmarks/{name}/{plot}.png)\n\n")
        lines.append(tables.markdown(rows, baselines))
    if results.left_out:
        lines.append("\nNot measured:\n\n")
        lines += [f"- {what}: {why}\n" for what, why in results.left_out.items()]
    lines.append(gpu_record.page(results.evidence))
    return "".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Bring the page and the plots up to date."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RESULTS.jsonl", help="of bench.gpu_run")
    args = parser.parse_args(arguments)
    if args.runs:
        try:
            found = gpu_record.record([item for path in args.runs for item in stage.read(path)])
        except (OSError, ValueError) as error:
            print(f"bench.report: error: {error}", file=sys.stderr)
            return 1
        path = FOLDER / f"{gpu_record.device_name(found)}.json"
        found.write(path)
        print(f"{path}: {len(found.rows)} rows")
    results = recorded()
    words, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        print(f"bench.report: error: {PAGE} has no line {MARK!r}", file=sys.stderr)
        return 1
    for name, found in results.items():
        folder = PLOTS / name
        plots.check(folder)
        plots.write(found, folder)
    PAGE.write_text(words + mark + page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
