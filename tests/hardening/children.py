"""Child processes that tests may kill, starve of memory or of disk, forked from one that has imported everything.

Their parent is multiprocessing's fork server, not the test run: it has used no threads and computed nothing, so that
what is forked from it is as good as a fresh process, without seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120  # seconds after which a child counts as hanging: far more than any takes on a busy machine

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "fastgen.cli",
        "fastgen.api",
        "fastgen.engines.diffusion.engine",
        "fastgen.engines.flow.engine",
        "fastgen.streaming",
        "fastgen.converters",
        "fastgen.images",
        "fastgen.training.loop",
        "PIL.PngImagePlugin",
        "PIL.GifImagePlugin",
        "PIL.ImageDraw",
        "PIL.ImageFont",
        "torch._dynamo",  # an optimiser imports it, for seconds
        "tests.small",
        "hypothesis",
    ]
)


@dataclass
class Child:
    """A child at work. `output` is the file of its stdout and stderr."""

    process: Any
    output: Path

    def wait(self) -> int:
        """Its exit code, minus the number of the signal that killed it; a failure where it hangs."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            pytest.fail(f"no end after {PATIENCE} s; it said: {self.said()}")
        return self.process.exitcode

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def start(output: Path, function: Callable[..., int | None], *arguments: object) -> Child:
    """Call `function`, of a module's top level, with `arguments` in a child; what it returns is the exit code."""
    output.unlink(missing_ok=True)
    process = _context.Process(target=_child, args=(str(output), function, arguments))
    process.start()
    return Child(process, output)


def run(output: Path, function: Callable[..., int | None], *arguments: object) -> tuple[int, str]:
    """The exit code and the words of `function` in a child."""
    child = start(output, function, *arguments)
    return child.wait(), child.said()


def command(*arguments: str) -> int:
    """``fastgen ARGUMENTS``."""
    from fastgen.cli import main

    return main(list(arguments))


def command_in(folder: str, arguments: list[str]) -> int:
    """``fastgen ARGUMENTS`` in `folder`."""
    os.chdir(folder)
    return command(*arguments)


def _child(output: str, function: Callable[..., int | None], arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"  # what a damaged file names is not to be looked for
    torch.cuda.is_available = lambda: False  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell of a background job has it ignored
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for the whole life of the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    code = function(*arguments)
    sys.stdout.flush()
    sys.exit(code)
