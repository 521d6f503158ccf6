"""Rows as lines of a table, in a terminal and in Markdown; and whether a run is slower than an old one.

Between two runs machines change: clocks, heat, other work. So a case's speed is its time divided by that of plain
PyTorch ("eager") in the same rounds, where both runs have it, else its time. A case is slower where the median got
worse by more than the threshold AND the quartile ranges of the two runs do not touch; where they touch it is "unsure".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .results import Results, Row
from .timing import Timing

Column = tuple[str, int, Callable[[Row], str]]  # title, width, a row's cell

REFERENCES = ("eager", "diffusers")  # the first that both runs have
THRESHOLD = 0.15
MACHINE = ("device", "threads", "features")  # what must be the same


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


def _number(value: float | None, form: str = ".3g", unit: float = 1.0) -> str:
    return "" if value is None else format(value / unit, form)


def _per_step(row: Row) -> str:
    return seconds(row.seconds.median / row.steps) if row.seconds and row.steps else ""


def _phases(row: Row) -> str:
    return ", ".join(f"{name} {seconds(value)}" for name, value in row.phases.get("fastgen", {}).items())


HEAD: tuple[Column, ...] = (
    ("name", 16, lambda row: row.name),
    ("case", 22, lambda row: row.case),
    ("dtype", 8, lambda row: row.dtype),
    ("error", 5, lambda row: f"{row.error:.2f}"),
    ("time", 7, _time),
    ("quartiles", 17, _quartiles),
)
KERNEL: tuple[Column, ...] = (
    ("GB/s", 6, lambda row: _number(row.rate(row.bytes), unit=1e9)),
    ("of copy", 7, lambda row: _number(row.copy_share, ".0%")),
    ("TFLOP/s", 7, lambda row: _number(row.rate(row.flops), ".2g", 1e12)),
)
WORK: tuple[Column, ...] = (
    ("images/s", 8, lambda row: _number(row.rate(row.images))),
    ("per step", 8, _per_step),
)
FRESH: tuple[Column, ...] = (
    ("fastgen's phases", 20, _phases),
    (
        "peak memory, whole process",
        26,
        lambda row: ", ".join(f"{name} {value >> 20} MiB" for name, value in row.peak_bytes.items()),
    ),
)
COLUMNS = {"kernels": HEAD + KERNEL, "fresh": HEAD + FRESH, "samplers": HEAD + WORK, "families": HEAD + WORK}
TITLES = {
    "kernels": "kernels: error as a fraction of its bound; baselines' time divided by fastgen's",
    "samplers": "samplers: a whole run; baselines' time divided by fastgen's",
    "families": "families: a whole call; baselines' time divided by fastgen's",
    "fresh": "fresh processes: time from start to the first image; baselines' time divided by fastgen's",
}


def head(suite: str, baselines: Sequence[str]) -> str:
    """The table's title and first line."""
    return f"\n{TITLES[suite]}\n" + _line(suite, [title for title, *_ in COLUMNS[suite]], baselines)


def line(row: Row, baselines: Sequence[str]) -> str:
    """A row under `head`."""
    cells = [cell(row) for *_, cell in COLUMNS[row.suite]]
    return _line(row.suite, cells, [ratio(row, name) for name in baselines]).rstrip()


def _line(suite: str, cells: Sequence[str], ratios: Sequence[str]) -> str:
    columns = enumerate(zip(cells, COLUMNS[suite], strict=True))
    aligned = [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, (_, width, _)) in columns]
    return " ".join([*aligned, *(value.rjust(11) for value in ratios)])


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


@dataclass(frozen=True)
class Verdict:
    """One case of both runs. change: the new median divided by the old one. by: what the times are relative to.

    state: slower, unsure, faster, same, wrong (now), or gone (not timed now).
    """

    row: Row
    state: str
    change: float = 1.0
    by: str = "time"


def compare(old: Results, new: Results, threshold: float = THRESHOLD) -> list[Verdict]:
    """A verdict for every case that both runs have. Raises ConfigError where they ran on different machines."""
    for name in MACHINE:
        was, now = old.environment.get(name), new.environment.get(name)
        if was != now:
            raise ConfigError(
                f"{name} is {was!r} in the old results and {now!r} now: only runs on one kind of machine compare",
                argument="--compare",
            )
    return list(_verdicts(old, new, threshold))


def _verdicts(old: Results, new: Results, threshold: float) -> Iterator[Verdict]:
    rows = {row.key: row for row in new.rows}
    for before in old.rows:
        row = rows.get(before.key)
        if before.seconds is None or row is None:
            continue
        if row.seconds is None:
            yield Verdict(row, "wrong" if row.wrong else "gone")
            continue
        by, was, now = "time", before.seconds, row.seconds
        for name in REFERENCES:
            if name in before.baselines and name in row.baselines:
                by = f"over {name}"
                was, now = was.over(before.baselines[name]), now.over(row.baselines[name])
                break
        yield Verdict(row, _state(was, now, threshold), now.median / was.median, by)


def _state(was: Timing, now: Timing, threshold: float) -> str:
    change = now.median / was.median
    if change > 1 + threshold:
        return "slower" if now.low > was.high else "unsure"
    return "faster" if change < 1 / (1 + threshold) and now.high < was.low else "same"


def report(verdicts: list[Verdict], threshold: float) -> str:
    """What changed, and the count of everything."""
    lines = [
        f"{v.state:7} {v.change:5.2f}x {v.by}: {' '.join(v.row.key)}"
        for v in verdicts
        if v.state not in ("same", "gone")
    ]
    counts = Counter(v.state for v in verdicts)
    states = ("slower", "unsure", "same", "faster", "wrong", "gone")
    summary = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    return "\n".join(
        [*lines, f"compared by more than {threshold:.0%}: {summary or 'no case is in both runs'}"]
    )
