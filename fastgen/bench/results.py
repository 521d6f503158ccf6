"""What was measured, as data: rows, and the file that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import parse_json
from ..errors import ConfigError
from ..files import read_ordinary, write_atomic
from .timing import Timing

FORMAT = 3  # 2 called "baselines" "rivals"; 1 had the kernels suite alone
MAX_BYTES = 1 << 26


@dataclass(frozen=True)
class Row:
    """One case: fastgen and its baselines doing the same work.

    error: fastgen's worst deviation as a fraction of its bound; above 1 the result is wrong, and nothing is timed.
    baselines: times of those that could run and agreed; errors: how far each was off, by the same measure. images,
    bytes, flops: of one call (0 where it does not apply). copy_share: bytes per second as a share of a copy's in the
    same run; None for tensors that stay in a GPU's cache. peak_bytes, phases: by contestant. notes: what a reader must
    know, for instance that a call ran uncaptured.
    """

    suite: str
    name: str
    case: str
    dtype: str
    error: float = math.nan
    seconds: Timing | None = None
    baselines: Mapping[str, Timing] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    batch: int = 0
    steps: int = 0
    images: int = 0
    bytes: int = 0
    flops: int = 0
    copy_share: float | None = None
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    phases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two rows of two runs the same case."""
        return (self.suite, self.name, self.case, self.dtype)

    @property
    def title(self) -> str:
        """The key without the suite, as words."""
        return " ".join(self.key[1:])

    @property
    def wrong(self) -> bool:
        """Whether fastgen's own result is outside its bound, or not a number."""
        return not self.error <= 1.0

    def rate(self, amount: int) -> float | None:
        """`amount` (images, bytes or flops of a call) per second; None where it was not timed or does not apply."""
        return amount / self.seconds.median if self.seconds and amount else None

    def ratio(self, baseline: str) -> Timing | None:
        """The baseline's time divided by fastgen's, round by round: above 1 fastgen is faster."""
        if self.seconds is None or baseline not in self.baselines:
            return None
        return self.baselines[baseline].over(self.seconds)

    def noted(self, note: str) -> Row:
        """This row with one note more."""
        return replace(self, notes=(*self.notes, note))

    def to_dict(self) -> dict[str, Any]:
        """JSON types; an error that is inf or NaN is null. Ratios are for readers; they follow from the samples."""
        ratios = {name: ratio.median for name in self.baselines if (ratio := self.ratio(name))}
        errors = {name: _finite(value) for name, value in self.errors.items()}
        return {**asdict(self), "error": _finite(self.error), "errors": errors, "ratios": ratios}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """What `to_dict` gave."""
        given = {name: value for name, value in values.items() if name != "ratios"}
        given["error"] = _or_inf(given["error"])
        given["errors"] = {name: _or_inf(value) for name, value in given.get("errors", {}).items()}
        given["seconds"] = None if given["seconds"] is None else _timing(given["seconds"])
        given["baselines"] = {name: _timing(value) for name, value in given["baselines"].items()}
        given["notes"] = tuple(given["notes"])
        return cls(**given)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _timing(values: Mapping[str, Any]) -> Timing:
    return Timing(**{**values, "samples": tuple(values["samples"])})


@dataclass
class Results:
    """A run: what it belongs to, the ceilings measured in it, its rows, and what was left out and why.

    ceilings: "copy" in bytes per second; a type's name in FLOPs per second of a large matrix product. evidence: what
    else a run on a GPU found, such as tests that failed; bench/gpu_record.py of the repository writes and reads it.
    """

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """One line per row, so that two files can be compared by eye. Raises WriteError."""
        head = {"format": FORMAT, "environment": self.environment}
        head |= {"ceilings": self.ceilings, "left_out": self.left_out}
        head |= {"evidence": self.evidence} if self.evidence else {}
        rows = ",\n".join(json.dumps(row.to_dict(), allow_nan=False) for row in self.rows)
        text = json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n' + rows + "\n]\n}\n"
        write_atomic(path, text.encode())

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises ConfigError where the file cannot be read, or is not one of ours."""
        values = parse_json(read_ordinary(path, MAX_BYTES, ConfigError), str(path))
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise ConfigError(
                f"expected results of `python -m fastgen.bench --json` with format {FORMAT}, got {found!r}: "
                "measure again with this version",
                argument=path,
            )
        try:
            rows = [Row.from_dict(row) for row in values["rows"]]
            head = values["environment"], rows, values["ceilings"], values["left_out"]
            return cls(*head, values.get("evidence", {}))
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"a part is missing or wrong: {error}", argument=path) from error
