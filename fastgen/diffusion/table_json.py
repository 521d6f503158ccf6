"""A table as JSON and back, exactly: for records that repeat a run whose solver has no name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import shown
from ..errors import ConfigError
from .table import MAX_FLOAT32, Table

MAX_ROWS = 100_000
WORDS = ("name", "initial_scale", "learned")
OPEN = {"inf": math.inf, "nan": math.nan}  # what JSON has no numbers for


def table_to_dict(table: Table) -> dict[str, Any]:
    """Plain data: one list per column; the innermost lists are the rows."""
    columns = [field.name for field in dataclasses.fields(Table) if field.name not in WORDS]
    return {
        **{name: getattr(table, name) for name in WORDS},
        **{name: _closed(getattr(table, name).tolist()) for name in columns},
    }


def table_from_dict(values: Mapping[str, Any], where: str) -> Table:
    """The table that `table_to_dict` wrote; anybody may have written it. Raises ConfigError."""
    fields = [field.name for field in dataclasses.fields(Table)]
    if not isinstance(values, Mapping) or set(values) != set(fields):
        raise ConfigError(f"expected a table with {', '.join(fields)}, got {shown(values)}", argument=where)
    name, scale, learned = (values[word] for word in WORDS)
    if not isinstance(name, str) or len(name) > 256 or type(learned) is not int:
        raise ConfigError(
            f"expected a name and the number of a learned variance, got {shown(name)}", argument=where
        )
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 <= scale <= MAX_FLOAT32:
        raise ConfigError(
            f"initial_scale: expected a number from 0 to {MAX_FLOAT32:.3g}, got {shown(scale)}",
            argument=where,
        )
    columns = {field: _column(values[field], f"{where}: {field}") for field in fields if field not in WORDS}
    try:
        table = Table(name=name, initial_scale=float(scale), learned=learned, **columns)
        table.check_float32()
        return table
    except ConfigError as error:
        raise ConfigError(f"{error}", argument=where) from error


def _closed(values: Any) -> Any:
    if isinstance(values, list):
        return [_closed(value) for value in values]
    return values if math.isfinite(values) else str(values)


def _column(values: Any, where: str) -> np.ndarray:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_ROWS:
        raise ConfigError(f"expected a list of 1 to {MAX_ROWS} rows, got {shown(values)}", argument=where)
    rows = [row if isinstance(row, list) else [row] for row in values]
    width = len(rows[0])
    if not 1 <= width <= 8 or any(len(row) != width for row in rows):
        raise ConfigError("expected rows of one length, at most 8", argument=where)
    numbers = [[OPEN.get(v, v) if isinstance(v, str) else v for v in row] for row in rows]
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for row in numbers for v in row):
        raise ConfigError("expected numbers", argument=where)
    if any(isinstance(v, int) and abs(v) >= 1 << 53 for row in numbers for v in row):
        raise ConfigError("expected integers below 2^53", argument=where)
    array = np.array(numbers, dtype=np.float64)
    return array if isinstance(values[0], list) else array[:, 0]
