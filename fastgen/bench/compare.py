"""Is this run slower than an old one? By ratios to a baseline of the same run where there is one.

Between two runs machines change: clocks, heat, other work. So a case's speed is its time over that of plain PyTorch
("eager") in the same rounds, where both runs have it, else its time. A case is slower where the median got worse by
more than the threshold AND the two runs' quartile ranges do not touch; where only the medians differ it is "unsure",
and said to be so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ConfigError
from .results import Results, Row
from .timing import Timing

REFERENCES = ("eager", "diffusers")  # the first that both runs have
THRESHOLD = 0.15
MACHINE = ("device", "threads", "features")  # what must be the same


@dataclass(frozen=True)
class Verdict:
    """One case of both runs. change: the new median over the old one; above 1 it is slower. by: what it is relative to.

    state: slower, unsure, faster, same, wrong (now), or gone (no speed now).
    """

    row: Row
    state: str
    change: float = 1.0
    by: str = "time"


def compare(old: Results, new: Results, threshold: float = THRESHOLD) -> list[Verdict]:
    """A verdict for every case of `old` that belongs to a suite which `new` ran. Raises ConfigError."""
    for name in MACHINE:
        if old.environment.get(name) != new.environment.get(name):
            raise ConfigError(
                f"{name} is {old.environment.get(name)!r} in the old results and "
                f"{new.environment.get(name)!r} now: only runs on one kind of machine can be compared",
                argument="compare",
            )
    return list(_verdicts(old, new, threshold))


def _verdicts(old: Results, new: Results, threshold: float) -> Iterator[Verdict]:
    now = {row.key: row for row in new.rows}
    for before in old.rows:
        row = now.get(before.key)
        if before.seconds is None or row is None:
            continue
        if row.seconds is None:
            yield Verdict(row, "wrong" if row.wrong else "gone")
            continue
        by, was, is_ = measured(before, row)
        change = is_.median / was.median
        state = "same"
        if change > 1 + threshold:
            state = "slower" if is_.low > was.high else "unsure"
        elif change < 1 / (1 + threshold) and is_.high < was.low:
            state = "faster"
        yield Verdict(row, state, change, by)


def measured(before: Row, row: Row) -> tuple[str, Timing, Timing]:
    """What is compared: fastgen's time over the same reference's, round by round, or its time."""
    assert before.seconds is not None
    assert row.seconds is not None
    for name in REFERENCES:
        if name in before.baselines and name in row.baselines:
            return (
                f"over {name}",
                before.seconds.over(before.baselines[name]),
                row.seconds.over(row.baselines[name]),
            )
    return "time", before.seconds, row.seconds


def report(verdicts: list[Verdict], threshold: float) -> str:
    """What changed, and the count of everything."""
    lines = [
        f"{v.state:7} {v.change:5.2f}x {v.by}: {' '.join(v.row.key)}"
        for v in verdicts
        if v.state not in ("same", "gone")
    ]
    states = ("slower", "unsure", "same", "faster", "wrong", "gone")
    counts = {state: sum(v.state == state for v in verdicts) for state in states}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*lines, f"compared by more than {threshold:.0%}: {said or 'no case is in both runs'}"])
