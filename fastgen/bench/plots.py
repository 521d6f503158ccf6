"""Results as images: latency and images per second by batch, and the roofline of the kernels. PNG, by matplotlib."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .results import Results, Row

COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#64473a", "#337ea9", "#cb912f", "#787774")
MARKS = "os^DvPX*<>"
LINES = ("-", "--", ":", "-.")
CEILING = "#37352f"


def check(folder: Path) -> None:
    """Before anything is measured: whether plots can be made and kept. Raises ConfigError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed: pip install 'fastgen[bench]'", argument="--plot")
    folder.mkdir(parents=True, exist_ok=True)


def write(results: Results, folder: Path) -> list[Path]:
    """Every plot that `results` have rows for; the files written."""
    rows: dict[str, list[Row]] = {"families": [], "samplers": [], "kernels": []}
    for row in results.rows:
        if row.suite in rows and row.seconds:
            rows[row.suite].append(row)
    written = []
    if work := rows["families"] or rows["samplers"]:
        written.append(batches(results, work, folder))
    if rows["kernels"]:
        written.append(roofline(results, rows["kernels"], folder))
    return written


def batches(results: Results, rows: list[Row], folder: Path) -> Path:
    """Left: time of a call by batch; right: images per second. A line for each model, type and contestant."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    figure, (left, right) = _figure(2, 11, 4.4)
    series: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.batch):
        for who in ("fastgen", *row.baselines):
            series[f"{row.name} {row.case.partition(', ')[2]} {row.dtype}", who].append(row)
    whos = list(dict.fromkeys(who for _, who in series))
    cases = list(dict.fromkeys(case for case, _ in series))
    for (case, who), found in series.items():
        colour, place = COLOURS[whos.index(who) % len(COLOURS)], cases.index(case)
        label = who if len(cases) == 1 else f"{who}: {case}"
        # A little beside one another: quartiles of contestants as fast as each other would lie on one line.
        x = [row.batch * 1.03 ** (whos.index(who) - (len(whos) - 1) / 2) for row in found]
        timings: list[Any] = [row.seconds if who == "fastgen" else row.baselines[who] for row in found]
        times = [[1e3 * value for value in (t.low, t.median, t.high)] for t in timings]
        rates = [
            [r.images / v for v in (t.high, t.median, t.low)] for r, t in zip(found, timings, strict=True)
        ]
        for axis, values in ((left, times), (right, rates)):
            # A median of few rounds may lie outside of its quartiles by a rounding.
            spread = [[max(0.0, v[1] - v[0]) for v in values], [max(0.0, v[2] - v[1]) for v in values]]
            style: dict[str, Any] = {
                "marker": MARKS[place % len(MARKS)],
                "linestyle": LINES[place % len(LINES)],
            }
            axis.errorbar(
                x, [v[1] for v in values], yerr=spread, color=colour, capsize=3, label=label, **style
            )
    sizes = sorted({row.batch for row in rows})
    for axis, label in ((left, "milliseconds per call"), (right, "images per second")):
        axis.set(xscale="log", yscale="log", xlabel="batch", ylabel=label)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    right.legend(fontsize=8, frameon=False)
    return _save(figure, cases[0] if len(cases) == 1 else "", results, folder / "batch.png")


def roofline(results: Results, rows: list[Row], folder: Path) -> Path:
    """Every kernel case: FLOPs per byte against FLOPs per second, under what a copy and a matrix product reach."""
    figure, (axis,) = _figure(1, 9, 6)
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        points[row.name].append((row.flops / row.bytes, row.rate(row.flops) or 0.0))
    for i, (name, found) in enumerate(points.items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
        label = f"{name} ({len(found)})"
        axis.scatter(*zip(*found, strict=True), label=label, s=26, alpha=0.8, **style)
    everything = [point for found in points.values() for point in found]
    low, high = min(x for x, _ in everything) / 2, max(x for x, _ in everything) * 4
    peaks = dict(results.ceilings)
    copy = peaks.pop("copy")
    ridge = max(peaks.values()) / copy
    axis.plot([low, min(high, ridge)], [low * copy, min(high, ridge) * copy], color=CEILING, linewidth=1.2)
    text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
    axis.annotate(f"copy {copy / 1e9:.3g} GB/s", (low, low * copy), xytext=(4, 50), **text)
    for name, rate in peaks.items():
        if rate / copy < high:
            axis.plot([rate / copy, high], [rate, rate], color=CEILING, linewidth=1.2)
            words = f"matrix product {name}, {rate / 1e12:.3g} TFLOP/s"
            axis.annotate(words, (high, rate), xytext=(-4, 22), ha="right", **text)
    axis.set(
        xscale="log", yscale="log", xlabel="FLOPs per byte moved", ylabel="FLOPs per second", xlim=(low, high)
    )
    axis.set_ylim(top=max(*peaks.values(), *(y for _, y in everything)) * 3)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return _save(figure, f"Roofline of {len(everything)} kernel cases", results, folder / "roofline.png")


def _figure(columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, title: str, results: Results, path: Path) -> Path:
    for axis in figure.axes:
        axis.grid(True, which="major", color="#e3e2e0", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    found = results.environment
    where = f"{found['device']}, {found['threads']} threads, torch {found['torch']}"
    figure.suptitle("\n".join(filter(None, [title, where])), fontsize=10)
    figure.savefig(path, metadata={"Software": None})
    return path
