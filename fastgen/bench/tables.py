"""Rows as lines of a table, in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .results import Row

Column = tuple[str, int, Callable[[Row], str]]  # title, width, a row's cell


def seconds(value: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s ", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value / size < 1000 else f"{value / size:.0f} {unit}"
    return f"{value * 1e9:.3g} ns"


def _time(row: Row) -> str:
    return seconds(row.seconds.median) if row.seconds else ("WRONG" if row.wrong else "")


def _quartiles(row: Row) -> str:
    return f"{seconds(row.seconds.low)} - {seconds(row.seconds.high)}" if row.seconds else ""


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


def _per_step(row: Row) -> str:
    return seconds(row.seconds.median / row.steps) if row.seconds and row.steps else ""


def _memory(row: Row) -> str:
    return ", ".join(f"{name} {value >> 20} MiB" for name, value in row.peak_bytes.items())


def _phases(row: Row) -> str:
    own = row.phases.get("fastgen", {})
    return ", ".join(f"{name} {seconds(value)}" for name, value in own.items())


HEAD: tuple[Column, ...] = (
    ("name", 16, lambda row: row.name),
    ("case", 22, lambda row: row.case),
    ("dtype", 8, lambda row: row.dtype),
    ("error", 5, lambda row: f"{row.error:.2f}"),
    ("time", 7, _time),
    ("quartiles", 17, _quartiles),
)
KERNEL: tuple[Column, ...] = (
    ("GB/s", 6, lambda row: _number(row.gb_per_second)),
    ("of copy", 7, lambda row: _number(row.copy_share, ".0%")),
    ("TFLOP/s", 7, lambda row: _number(row.tflop_per_second, ".2g")),
)
WORK: tuple[Column, ...] = (
    ("images/s", 8, lambda row: _number(row.images_per_second)),
    ("a step", 7, _per_step),
)
FRESH: tuple[Column, ...] = (("fastgen's phases", 20, _phases), ("peak memory, whole process", 26, _memory))
COLUMNS = {"kernels": HEAD + KERNEL, "fresh": HEAD + FRESH, "samplers": HEAD + WORK, "families": HEAD + WORK}
TITLES = {
    "kernels": "kernels: error as a fraction of its bound; baselines' time over fastgen's",
    "samplers": "samplers: a whole run; baselines' time over fastgen's",
    "families": "families: a whole call; baselines' time over fastgen's",
    "fresh": "fresh processes: time from start to the first picture; baselines' time over fastgen's",
}


def head(suite: str, baselines: Sequence[str]) -> str:
    """The table's title and first line."""
    columns = [(title, width) for title, width, _ in COLUMNS[suite]]
    cells = [_aligned(title, width, i) for i, (title, width) in enumerate(columns)]
    return f"\n{TITLES[suite]}\n" + " ".join([*cells, *(f"{name:>11}" for name in baselines)])


def line(row: Row, baselines: Sequence[str]) -> str:
    """A row under `head`: the ratios with their quartiles' half width."""
    cells = [_aligned(cell(row), width, i) for i, (_, width, cell) in enumerate(COLUMNS[row.suite])]
    return " ".join([*cells, *(f"{ratio(row, name):>11}" for name in baselines)]).rstrip()


def ratio(row: Row, baseline: str) -> str:
    """How much faster than a baseline, as 1.23x; empty where it was not timed."""
    found = row.ratio(baseline)
    return "" if found is None else f"{found.median:.2f}x"


def markdown(rows: Sequence[Row], baselines: Sequence[str]) -> str:
    """Rows of one suite as a table."""
    columns = COLUMNS[rows[0].suite]
    lines = [[title for title, *_ in columns] + list(baselines), ["---"] * (len(columns) + len(baselines))]
    lines += [[cell(row) for *_, cell in columns] + [ratio(row, name) for name in baselines] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _aligned(cell: str, width: int, place: int) -> str:
    return cell.ljust(width) if place < 3 else cell.rjust(width)
