"""Solver tables as JSON files that need neither PyTorch nor fastgen to be read: ``tables/SOLVER-STEPS.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastgen.config import shown
from fastgen.diffusion.table import Table, pack
from fastgen.engines import DiffusionEngine
from fastgen.errors import ConfigError
from fastgen.exports.reverse_step import LARGEST
from fastgen_kernels.reverse_step import row
from fastgen_kernels.reverse_step.reference import INTEGER_WORDS, integer_words

SOLVERS = ("ddpm", "ddim", "dpm++2m", "dpm++2m_sde", "unipc", "euler", "euler_a", "heun")
STEPS = (10, 20, 50)
REQUEST = re.compile(r"([\w.+-]+):([0-9]{1,5})")


def table_name(solver: str, steps: int) -> str:
    """The file of a table, beside the models."""
    return f"tables/{solver}-{steps}.json"


def parse_tables(tables: Any) -> list[tuple[str, int]]:
    """``["unipc:12"]`` -> [("unipc", 12)]. Raises ConfigError."""
    if isinstance(tables, (str, bytes, Mapping)) or not isinstance(tables, Iterable):
        raise ConfigError(
            f'expected a list of SOLVER:STEPS like ["unipc:12"], got {shown(tables)}', argument="tables"
        )
    return [_parsed(text) for text in tables]


def _parsed(text: Any) -> tuple[str, int]:
    match = REQUEST.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"expected SOLVER:STEPS like unipc:12, got {shown(text)}", argument="tables")
    return match[1], int(match[2])


def table_files(
    engine: DiffusionEngine, asked: Iterable[tuple[str, int]]
) -> tuple[dict[str, bytes], list[str]]:
    """Files of the usual tables and of those that are asked for; and a line for each usual one that there is not.

    Raises ConfigError for one that is asked for and cannot be.
    """
    settings, files, left_out = engine.settings, {}, []
    wanted = list(dict.fromkeys([(settings.solver, settings.steps), *asked]))
    usual = [(solver, steps) for solver in SOLVERS for steps in STEPS if (solver, steps) not in wanted]
    for solver, steps in (*wanted, *usual):
        try:
            table = engine.request(1, solver=solver, steps=steps, labels=_label(engine)).plans[0].table
            files[table_name(solver, steps)] = table_json(table, solver, steps)
        except ConfigError as error:
            if (solver, steps) in wanted:
                raise
            left_out.append(f"{table_name(solver, steps)}: {error}")
    return files, left_out


def _label(engine: DiffusionEngine) -> int | None:
    return None if engine.settings.num_classes is None else 0


def table_json(table: Table, solver: str, steps: int) -> bytes:
    """A table as ``sampler.onnx`` takes it: see ``docs/onnx.md``."""
    table.check_float32()
    rows, times = pack(table, 1)
    words = integer_words(rows)
    values = rows.numpy().copy()
    values[:, list(INTEGER_WORDS)] = 0.0
    values[:, row.CLIP] = np.minimum(values[:, row.CLIP], LARGEST)  # JSON has no infinity
    content = {
        "solver": solver,
        "steps": steps,
        "evaluations": len(table),
        "initial_scale": float(np.float32(table.initial_scale)),
        "time": _floats(times.numpy()),
        "slot": words[:, row.SLOT].tolist(),
        "noise_step": [step & 0xFFFFFFFF for step in words[:, row.NOISE_STEP].tolist()],
        "rows": [_floats(line) for line in values],
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _floats(values: np.ndarray) -> list[Any]:
    """float32 numbers in the fewest digits that give them back; whole ones as integers."""
    return [int(v) if v == int(v) and abs(v) < 1 << 24 else float(str(v)) for v in values]
