"""The kernels suite: every production case of every operation, checked, then timed against plain PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fastgen_kernels import OPS, Case, Op

from .race import RIVALS, compiled, race
from .timing import Call, Timing, interleaved

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}  # larger than any cache


@dataclass(frozen=True)
class Row:
    """One case. Rates are those of fastgen; ratios are the rival's median time over fastgen's: above 1 is faster.

    error: worst deviation from float64 as a fraction of the derived bound; above 1 nothing is timed. copy_share: of the
    bandwidth of a copy in the same run; None for tensors that stay in a GPU's cache.
    """

    op: str
    case: str
    dtype: str
    error: float
    seconds: Timing | None = None
    gb_per_second: float | None = None
    copy_share: float | None = None
    tflop_per_second: float | None = None
    rivals: dict[str, Timing] | None = None

    def ratio(self, rival: str) -> float | None:
        """Median of `rival` over that of fastgen."""
        if self.seconds is None or not self.rivals or rival not in self.rivals:
            return None
        return self.rivals[rival].median / self.seconds.median

    def to_dict(self) -> dict[str, Any]:
        ratios = {name: self.ratio(name) for name in self.rivals or {}}
        return {**asdict(self), "ratios": ratios}


def copy_bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes a second of a copy, read and written, between tensors larger than any cache."""
    size = COPY_BYTES[device.type]
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    source.zero_()
    timing = interleaved({"copy": lambda: target.copy_(source)}, device, rounds=rounds)["copy"]
    return 2 * size / timing.median


def selected(
    ops: Sequence[str], cases: Sequence[str], dtypes: Sequence[torch.dtype]
) -> Iterator[tuple[Op, Case, torch.dtype]]:
    """Production cases of `ops` (all where empty), by name where `cases` says so, in `dtypes`."""
    for name, op in OPS.items():
        if ops and name not in ops:
            continue
        for case in op.cases:
            if case.name in cases or (case.production and not cases):
                for dtype in dtypes:
                    if dtype in case.dtypes:
                        yield op, case, dtype


def measure(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    *,
    copy: float,
    against: Sequence[str] = RIVALS,
    rounds: int = 9,
) -> Row:
    """Check one case, then time it beside its rivals on the same arguments. copy: bytes a second of a copy."""
    arguments = case.make(torch.Generator().manual_seed(0), device, dtype)
    error = max(op.errors(arguments).values())
    name = str(dtype).removeprefix("torch.")
    if not error <= 1.0:
        return Row(op.name, case.name, name, error)
    formula = op.eager or op.reference
    own = op.in_place(**arguments) if op.in_place is not None else lambda: op.function(**arguments)

    def compile_formula() -> Call:
        fast = compiled(formula, device.type == "cuda")
        return lambda: fast(**arguments)

    timings = race(own, lambda: formula(**arguments), compile_formula, against, device, rounds)
    cost = (op.bytes_moved(**arguments), op.flops(**arguments))
    return rated(Row(op.name, case.name, name, error), timings, cost, copy, device)


def rated(
    row: Row, timings: dict[str, Timing], cost: tuple[int, int], copy: float, device: torch.device
) -> Row:
    """`row` with its times and rates. cost: bytes and FLOPs of a call; copy: bytes a second of a copy."""
    own = timings.pop("fastgen")
    moved, flops = cost
    speed = moved / own.median
    return replace(
        row,
        seconds=own,
        gb_per_second=speed / 1e9,
        copy_share=speed / copy if moved >= 2 * cache_bytes(device) else None,
        tflop_per_second=flops / own.median / 1e12,
        rivals=timings,
    )


def cache_bytes(device: torch.device) -> int:
    """The second-level cache of a GPU, in which small tensors stay; on a CPU 0, where rates are for orientation."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def run(
    device: torch.device,
    *,
    copy: float,
    ops: Sequence[str] = (),
    cases: Sequence[str] = (),
    dtypes: Sequence[torch.dtype],
    against: Sequence[str] = RIVALS,
    rounds: int = 9,
) -> Iterator[Row]:
    """Measure what is selected, a row at a time."""
    for op, case, dtype in selected(ops, cases, dtypes):
        yield measure(op, case, dtype, device, copy=copy, against=against, rounds=rounds)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


HEAD = ("op", "case", "dtype", "error", "time", "quartiles", "GB/s", "of copy", "TFLOP/s")


def line(row: Row, against: Sequence[str]) -> tuple[str, ...]:
    """A row's cells for a table under HEAD and the rivals' names."""
    if row.seconds is None:
        return (row.op, row.case, row.dtype, f"{row.error:.2f}", "WRONG", *[""] * (4 + len(against)))
    time = row.seconds
    ratios = [row.ratio(name) for name in against]
    return (
        row.op,
        row.case,
        row.dtype,
        f"{row.error:.2f}",
        _seconds(time.median),
        f"{_seconds(time.low)} - {_seconds(time.high)}",
        f"{row.gb_per_second:.3g}",
        "" if row.copy_share is None else f"{row.copy_share:.0%}",
        f"{row.tflop_per_second:.2g}",
        *["" if ratio is None else f"{ratio:.2f}x" for ratio in ratios],
    )


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"
