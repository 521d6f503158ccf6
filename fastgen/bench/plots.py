"""Results as pictures: latency and images a second by batch, and the roofline of the kernels. PNG, by matplotlib."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .results import Results, Row

DPI = 120
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#64473a", "#337ea9", "#cb912f", "#787774")
MARKS = "os^DvPX*<>"


def check(folder: Path) -> None:
    """Before anything is measured: whether plots can be made and kept. Raises ConfigError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed: pip install 'fastgen[bench]'", argument="plot")
    folder.mkdir(parents=True, exist_ok=True)


def write(results: Results, folder: Path) -> list[Path]:
    """Every plot that `results` have rows for; the files written."""
    written = []
    work = [row for row in results.rows if row.suite in ("families", "samplers") and row.seconds]
    if work:
        written.append(batches(results, [row for row in work if row.suite == "families"] or work, folder))
    kernels = [row for row in results.rows if row.suite == "kernels" and row.seconds]
    if kernels:
        written.append(roofline(results, kernels, folder))
    return written


def batches(results: Results, rows: list[Row], folder: Path) -> Path:
    """Left: time of a call by batch; right: images a second. A line for each model, type and contestant."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    figure, (left, right) = _figure(1, 2, 11, 4.4)
    series: dict[tuple[str, str], list[tuple[int, Any, int]]] = defaultdict(list)
    for row in rows:
        assert row.seconds is not None
        for who, timing in {"fastgen": row.seconds, **row.baselines}.items():
            series[f"{row.name} {row.case.partition(', ')[2]} {row.dtype}", who].append(
                (row.batch, timing, row.images)
            )
    whos = list(dict.fromkeys(who for _, who in series))
    cases = list(dict.fromkeys(case for case, _ in series))
    for (case, who), points in series.items():
        points.sort(key=lambda point: point[0])
        # A little beside one another: quartiles of contestants as fast as each other would lie on one line.
        x = [batch * 1.03 ** (whos.index(who) - (len(whos) - 1) / 2) for batch, *_ in points]
        style = {
            "color": COLOURS[whos.index(who) % len(COLOURS)],
            "marker": MARKS[cases.index(case) % len(MARKS)],
            "linestyle": ("-", "--", ":", "-.")[cases.index(case) % 4],
            "capsize": 3,
            "label": who if len(cases) == 1 else f"{who}: {case}",
        }
        for axis, scale in ((left, False), (right, True)):
            y, low, high = [], [], []
            for _, timing, images in points:
                values = [timing.median, timing.low, timing.high]
                mid, one, other = [images / v for v in values] if scale else [v * 1e3 for v in values]
                y.append(mid)
                low.append(max(0.0, mid - min(one, other)))
                high.append(max(0.0, max(one, other) - mid))
            axis.errorbar(x, y, yerr=(low, high), **style)
    for axis, label in ((left, "milliseconds a call"), (right, "images a second")):
        axis.set(xscale="log", yscale="log", xlabel="batch", ylabel=label)
        sizes = sorted({row.batch for row in rows})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom / 1.4, top * 1.4)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        _plain(axis)
    right.legend(fontsize=8, frameon=False)
    figure.suptitle(f"{cases[0]}\n{_where(results)}" if len(cases) == 1 else _where(results), fontsize=10)
    return _save(figure, folder / "batch.png")


def roofline(results: Results, rows: list[Row], folder: Path) -> Path:
    """Every kernel case: FLOPs a byte against FLOPs a second, under what a copy and a matrix product reach."""
    figure, axes = _figure(1, 1, 9, 6)
    axis = axes[0]
    names = list(dict.fromkeys(row.name for row in rows))
    placed = [(row.flops / row.bytes, row.flops / row.seconds.median, row) for row in rows if row.seconds]
    for name in names:
        points = [(x, y) for x, y, row in placed if row.name == name]
        style = {"color": COLOURS[names.index(name) % len(COLOURS)], "s": 26, "alpha": 0.8}
        marker = MARKS[names.index(name) % len(MARKS)]
        axis.scatter(*zip(*points, strict=True), marker=marker, label=f"{name} ({len(points)})", **style)
    low = min(x for x, *_ in placed) / 2
    high = max(x for x, *_ in placed) * 4
    copy = results.ceilings["copy"]
    peaks = {name: rate for name, rate in results.ceilings.items() if name != "copy"}
    top = max(peaks.values())
    axis.plot(
        [low, min(high, top / copy)], [low * copy, min(high * copy, top)], color="#37352f", linewidth=1.2
    )
    axis.annotate(
        f"copy {copy / 1e9:.3g} GB/s",
        (low, low * copy),
        xytext=(4, 34),
        textcoords="offset points",
        fontsize=8,
    )
    for name, rate in peaks.items():
        if rate / copy < high:
            axis.plot([rate / copy, high], [rate, rate], color="#37352f", linewidth=1.2)
            text = f"matrix product {name}, {rate / 1e12:.3g} TFLOP/s"
            axis.annotate(
                text, (high, rate), xytext=(-4, 22), textcoords="offset points", ha="right", fontsize=8
            )
    axis.set(
        xscale="log", yscale="log", xlabel="FLOPs a byte moved", ylabel="FLOPs a second", xlim=(low, high)
    )
    axis.set_ylim(top=max(top, *(y for _, y, _ in placed)) * 3)
    _plain(axis)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(f"Roofline of {len(placed)} kernel cases\n{_where(results)}", fontsize=10)
    return _save(figure, folder / "roofline.png")


def _where(results: Results) -> str:
    found = results.environment
    return f"{found['device']}, {found['threads']} threads, torch {found['torch']}"


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)[0]


def _plain(axis: Any) -> None:
    axis.grid(True, which="major", color="#e3e2e0", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Software": None})
    return path
