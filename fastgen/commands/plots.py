"""What a model has learnt, as a plot: of a table the density of two columns, or the distributions of several; of a
diffusion model the terms of its variational bound.

Needs matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..files import check_writable, write_atomic
from .outputs import check_free

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SUFFIXES = (".png", ".pdf", ".svg")
GRID = 200  # points per side of a heat map
COARSE = 60  # points a side, where each takes long
MAX_COLUMNS = 8  # of a grid of marginals: 36 panels
BINS = 50
COVERED = (0.002, 0.998)  # quantiles that a panel shows, and a margin
MARGIN = 0.12  # of the range
SAMPLES, DATA = "tab:blue", "tab:orange"


def check_plot(path: Path, overwrite: bool) -> None:
    """Before any work is done: whether a plot can be drawn and written to `path`. Raises ConfigError or WriteError."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"expected a name that ends in {', '.join(SUFFIXES)}, got {path}", argument="--plot"
        )
    check_free([path], overwrite)
    check_writable(path.absolute().parent)
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "needs matplotlib: pip install matplotlib (or fastgen with its extra: fastgen[plot])",
            argument="--plot",
        ) from error
    matplotlib.use("Agg")  # files only: there may be no screen


def columns_shown(asked: tuple[int, ...] | None, count: int) -> list[int]:
    """Indices of the columns to show, of `count`: all, but no more than there is room for. Raises ConfigError."""
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


def write_plot(
    path: Path,
    engine: Any,
    drawn: NDArray[Any],
    data: NDArray[Any] | None,
    columns: list[int] | None,
    label: int | None,
    **options: Any,
) -> None:
    """Draw samples `drawn` [n, D] of `engine` beside `data` [m, D], if there is any, and write the file `path`.

    columns: indices of those whose distributions are shown; None: the density of both columns, a heat map.
    label: the class whose density is shown. options: of ``engine.log_prob``. Raises WriteError.
    """
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 9}):
        if columns is None:
            figure = _heat_map(engine, drawn, data, label, **options)
        else:
            figure = _marginals(drawn[:, columns], None if data is None else data[:, columns], columns)
        save_figure(figure, path)


def write_terms(path: Path, terms: Mapping[str, Any], title: str) -> None:
    """Draw the terms of a variational bound by timestep, and what they add up to; write the file `path`.

    terms: "prior", a number, and "values", one per timestep, the first the decoder's, None where there is none. Raises
    WriteError.
    """
    import numpy as np
    from matplotlib import pyplot

    values = np.array([np.nan if value is None else value for value in terms["values"]], dtype=np.float64)
    there = np.flatnonzero(np.isfinite(values))
    steps = there[there > 0]
    # What was not evaluated counts as its nearest neighbour in time.
    filled = np.interp(np.arange(len(values)), there, values[there])
    with pyplot.rc_context({"font.size": 9}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        left.loglog(steps, values[steps].clip(1e-12), ".", markersize=3, color=SAMPLES)
        left.axhline(values[0], color=DATA, linewidth=1, label=f"decoder {values[0]:.4g}")
        left.plot([], [], " ", label=f"prior {terms['prior']:.2g}")
        left.set(xlabel="timestep t", ylabel="term of the bound")
        left.legend()
        right.plot(np.arange(len(values)), terms["prior"] + np.cumsum(filled), color=SAMPLES)
        right.set(
            xlabel="timestep t", ylabel="prior, decoder and terms up to t", xscale="symlog", ylim=(0, None)
        )
        figure.suptitle(title)
        save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure of pyplot's, by the name's suffix, and close it. Raises WriteError."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    kind = path.suffix.lower().removeprefix(".")
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)
    write_atomic(path, buffer.getvalue())


def _heat_map(
    engine: Any, drawn: NDArray[Any], data: NDArray[Any] | None, label: int | None = None, **options: Any
) -> Figure:
    """The density of a model of two columns: alone, under samples [n, 2] and, where there is any, under data [m, 2]."""
    import numpy as np
    import torch
    from matplotlib import pyplot

    (left, right), (low, high) = _ranges(drawn if data is None else data)
    # A density that is integrated for every point takes hundreds of evaluations of the network.
    grid = COARSE if engine.describe().get("bound", False) else GRID
    x, y = np.linspace(left, right, grid), np.linspace(low, high, grid)
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    found = engine.log_prob(torch.from_numpy(points).float(), labels=label, **options)
    values = found if isinstance(found, torch.Tensor) else found.values
    density = np.exp(values.numpy(force=True).astype(np.float64)).reshape(grid, grid)
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


def _marginals(drawn: NDArray[Any], data: NDArray[Any] | None, names: list[int]) -> Figure:
    """A corner of panels: single columns on the diagonal, pairs below it, samples (and above it data) beside data.

    drawn: [n, D], data: [m, D], names: the columns' indices.
    """
    import numpy as np
    from matplotlib import pyplot

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


def _ranges(values: NDArray[Any]) -> list[tuple[float, float]]:
    """What a panel shows of each column of values [n, D]."""
    import numpy as np

    low, high = np.quantile(values.astype(np.float64), COVERED, axis=0)
    # around a single value there is room, whatever its unit
    margin = MARGIN * np.where(high > low, high - low, np.maximum(np.abs(high), 1e-30))
    return [(float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True)]
