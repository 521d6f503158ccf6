"""What a stage works with: its device, its deadline, and the file that every item is appended to at once."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fastgen.bench.results import Row

RESULTS = "results.jsonl"
BROKEN = 75  # exit code of a stage whose process can do no more on the device: it is to be started again


def append(path: Path, item: Mapping[str, Any]) -> None:
    """Add a line to the file of results. A process killed at any time leaves whole lines, this one or not."""
    line = json.dumps(_plain(item), allow_nan=False) + "\n"
    # One write to the end of the file: stages and their children may append at the same time.
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """Every item of a file of results; a last line that is not whole is left out."""
    items = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            items.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return items


def _plain(value: Any) -> Any:
    """`value` in JSON's types: what JSON has no number for becomes its name, other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@dataclass
class Stage:
    """One stage in its process.

    name: of the stage. folder: where results go. until: on time.time(), when it is ended. dry: a stated rehearsal on
    a CPU with the smallest cases. options: what the command line gave to this stage. done, failed: what an earlier
    process of this stage attempted, and what of it failed.
    """

    name: str
    folder: Path
    until: float
    dry: bool
    options: Mapping[str, str]
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        path = self.folder / RESULTS
        mine = [item for item in read(path) if item.get("stage") == self.name] if path.exists() else []
        self.failed |= {item["name"] for item in mine if item["kind"] == "failure"}
        self.done |= self.failed | {item["name"] for item in mine if item["kind"] == "attempt"}

    @property
    def device(self) -> torch.device:
        """The first GPU; the CPU in a dry run."""
        import torch

        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    def left(self) -> float:
        """Seconds until the stage is ended."""
        return self.until - time.time()

    def add(self, kind: str, name: str, **facts: Any) -> None:
        """One item. kind: "fact", "check", "ceiling", "row", "test", "probe" and others: gpu_record.py reads them."""
        append(
            self.folder / RESULTS,
            {"stage": self.name, "kind": kind, "name": name, "at": round(time.time(), 3), **facts},
        )
        print(f"{kind}: {name}", flush=True)

    def add_row(self, row: Row, began: float) -> None:
        """A benchmark's row; a wrong result is a failure. began: on time.perf_counter(), when the work on it began."""
        outcome = "failed" if row.wrong else "passed"
        took = time.perf_counter() - began
        self.add("row", " ".join(row.key[1:]), row=row.to_dict(), outcome=outcome, took=took)

    def begins(self, name: str, seconds: float) -> bool:
        """Whether no earlier process tried `name` and `seconds` are left for it. An item tells what does not fit."""
        if self.tried(name):
            return False
        if self.left() < seconds:
            self.add("skipped", name, reason="no time left")
            return False
        return True

    def tried(self, name: str) -> bool:
        """Whether an earlier process of this stage has been through `attempt(name)`."""
        return name in self.done

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Within the block an error becomes an item of its own, and the stage goes on.

        After an access outside of memory, or another error that CUDA does not forget, nothing more can be done in this
        process: it ends with BROKEN, and another one goes on behind this attempt.
        """
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.add("failure", name, error=f"{type(error).__name__}: {error}"[:2000])
            if not self.dry and not device_works():
                print("the device cannot be used any more in this process", flush=True)
                os._exit(BROKEN)
        else:
            self.add("attempt", name)


def device_works() -> bool:
    """Whether kernels, the generator and the allocator of the current device still work in this process."""
    import torch

    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.randn(1, device="cuda")
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
