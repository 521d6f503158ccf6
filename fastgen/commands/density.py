"""``fastgen density``: what a flow has learnt of a table, as a picture."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..families.values import integers
from ..files import check_writable, write_atomic
from .arguments import add_model, counted, positive, span
from .evaluate import load_data, load_flow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..engines.flow.engine import FlowEngine

COUNT = 2000  # of samples, and of rows of data shown
GRID = 200  # points a side of a heat map
MAX_COLUMNS = 8  # of a grid of marginals: 36 panels
BINS = 50
COVERED = (0.002, 0.998)  # quantiles that a panel shows, and a margin
MARGIN = 0.12  # of the range
SAMPLES, DATA = "tab:blue", "tab:orange"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "density",
        help="a picture of the density that a vector flow has learnt",
        description="Two columns: a heat map of the density, with samples and, if they are given, data on it. More: a "
        "grid of the distributions of single columns and pairs of them, samples beside data. Needs matplotlib.",
    )
    add_model(parser)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("density.png"), help="PNG, PDF or SVG to write"
    )
    parser.add_argument("--data", help="data to compare with, as for `fastgen train`")
    parser.add_argument("--subset", type=span, metavar="FIRST-LAST", help="use only these rows of the data")
    parser.add_argument("--columns", type=integers, metavar="1,2,5", help="which to show, the first is 1")
    parser.add_argument("-n", "--count", type=positive, default=COUNT, help=f"samples (default {COUNT})")
    parser.add_argument("--label", type=int, help="the class to show, of a flow that knows classes")
    parser.add_argument("--temperature", type=float, help="of the samples (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw as `args` ask; returns the exit code."""
    out = args.out
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--out {out}: expected a name that ends in .png, .pdf or .svg")
    if out.exists() and not args.overwrite:
        raise ConfigError(f"{out} is there already; choose another name, or --overwrite")
    check_writable(out.absolute().parent)
    pyplot = _pyplot()
    engine = load_flow(args, "density")
    if len(engine.flow.data_shape) != 1:
        raise ConfigError(
            f"{args.model} models pictures; `fastgen sample` shows them, `fastgen evaluate` says how likely "
            "others are",
            argument="density",
        )
    shown = _columns(args.columns, engine.flow.data_shape[0])
    data = None if args.data is None else _rows(engine, args)
    samples: Any = engine.sample(args.count, seed=args.seed, labels=args.label, temperature=args.temperature)
    drawn = samples.numpy(force=True)
    with pyplot.rc_context({"font.size": 9}):
        if engine.flow.data_shape == (2,) and args.columns is None:
            figure = heat_map(engine, drawn, data, args.label)
        else:
            figure = marginals(drawn[:, shown], None if data is None else data[:, shown], shown)
        buffer = io.BytesIO()
        kind = out.suffix.lower().removeprefix(".")
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
        pyplot.close(figure)
    write_atomic(out, buffer.getvalue())
    beside = "" if data is None else f", {counted(len(data), 'row')} of data"
    print(f"{counted(args.count, 'sample')}{beside} -> {out}")
    return 0


def heat_map(
    engine: FlowEngine, drawn: NDArray[Any], data: NDArray[Any] | None, label: int | None = None
) -> Figure:
    """The density of a flow of two columns: alone, under samples [n, 2] and, where there is any, under data [m, 2]."""
    import torch

    pyplot = _pyplot()
    (left, right), (low, high) = _ranges(drawn if data is None else data)
    x, y = np.linspace(left, right, GRID), np.linspace(low, high, GRID)
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    log_prob = engine.log_prob(torch.from_numpy(points).float(), labels=label).numpy(force=True)
    density = np.exp(log_prob.astype(np.float64)).reshape(GRID, GRID)
    panels = [("density", None, None), (f"{len(drawn)} samples", drawn, SAMPLES)]
    if data is not None:
        panels.append((f"{len(data)} rows of data", data, DATA))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels) + 0.8, 3.9), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (title, dots, colour) in zip(axes, panels, strict=True):
        image = axis.pcolormesh(
            x, y, density, cmap="viridis" if dots is None else "Greys", shading="nearest", rasterized=True
        )
        if dots is None:
            figure.colorbar(image, ax=axis, label="p(x)")
        else:
            axis.scatter(dots[:, 0], dots[:, 1], s=2, alpha=0.5, color=colour, linewidths=0)
        axis.set(title=title, xlabel="column 1", xlim=(left, right), ylim=(low, high))
        axis.set_box_aspect(1)
    axes[0].set_ylabel("column 2")
    return figure


def marginals(drawn: NDArray[Any], data: NDArray[Any] | None, names: list[int]) -> Figure:
    """A corner of panels: single columns on the diagonal, pairs below it, samples (and above it data) beside data.

    drawn: [n, D], data: [m, D], names: the columns' indices.
    """
    pyplot = _pyplot()
    count = drawn.shape[1]
    ranges = _ranges(drawn if data is None else data)
    size = max(1.35, 5.0 / count)
    figure, axes = pyplot.subplots(
        count, count, figsize=(size * count + 0.4, size * count + 0.6), squeeze=False, layout="constrained"
    )
    for row in range(count):
        for column in range(count):
            axis = axes[row, column]
            if row == column:
                bins = np.linspace(*ranges[row], BINS + 1)
                for values, colour in ((data, DATA), (drawn, SAMPLES)):
                    if values is not None:
                        fill = {"alpha": 0.45} if values is data else {"histtype": "step", "linewidth": 1.3}
                        axis.hist(values[:, row], bins=bins, density=True, color=colour, **fill)
                axis.set(xlim=ranges[row], yticks=[])
            else:
                values, colour = (drawn, SAMPLES) if row > column else (data, DATA)
                if values is None:
                    axis.set_axis_off()
                    continue
                axis.scatter(values[:, column], values[:, row], s=1, alpha=0.35, color=colour, linewidths=0)
                axis.set(xlim=ranges[column], ylim=ranges[row])
                axis.set_yticks([] if column else axis.get_yticks(), minor=False)
                axis.set_ylim(ranges[row])
            if row < count - 1:
                axis.set_xticks([])
            else:
                axis.set_xlabel(f"column {names[column] + 1}")
            if column == 0 and row:
                axis.set_ylabel(f"column {names[row] + 1}")
    below = f"below: {len(drawn)} samples"
    figure.suptitle(below if data is None else f"{below} (blue); above: {len(data)} rows of data (orange)")
    return figure


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "needs matplotlib: pip install matplotlib (or fastgen with its extra: fastgen[plot])",
            argument="density",
        ) from error
    matplotlib.use("Agg")  # files only: there may be no screen
    from matplotlib import pyplot

    return pyplot


def _columns(asked: tuple[int, ...] | None, count: int) -> list[int]:
    """Indices of the columns to show: all, but no more than there is room for."""
    if asked is None:
        return list(range(min(count, MAX_COLUMNS)))
    if (
        not 1 <= len(asked) <= MAX_COLUMNS
        or len(set(asked)) < len(asked)
        or not all(1 <= c <= count for c in asked)
    ):
        raise ConfigError(
            f"expected at most {MAX_COLUMNS} different ones from 1 to {count}, "
            f"got {','.join(map(str, asked))}",
            argument="--columns",
        )
    return [c - 1 for c in asked]


def _rows(engine: FlowEngine, args: argparse.Namespace) -> NDArray[Any]:
    """At most `COUNT` rows of the data, of the class to show."""
    dataset = load_data(engine, args.data, None, args.subset)
    values, labels, _ = dataset.batch(range(len(dataset)))
    if args.label is not None and labels is not None:
        values = values[labels == args.label]
        if not len(values):
            raise ConfigError(f"--data {args.data}: no row of the data has label {args.label}")
    step = max(1, len(values) // COUNT)
    return values[::step][:COUNT].numpy()


def _ranges(values: NDArray[Any]) -> list[tuple[float, float]]:
    """What a panel shows of each column of values [n, D]."""
    low, high = np.quantile(values.astype(np.float64), COVERED, axis=0)
    # around a single value there is room, whatever its unit
    margin = MARGIN * np.where(high > low, high - low, np.maximum(np.abs(high), 1e-30))
    return [(float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True)]
