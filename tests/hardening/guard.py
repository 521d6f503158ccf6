"""What reading a file may cost: memory in proportion to what the file claims, and little time."""

from __future__ import annotations

import faulthandler
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLACK = 32 << 20  # bytes: the interpreter's own, and what a header of the largest size is parsed into
SECONDS = 60  # an example that takes longer hangs: it takes milliseconds


@contextmanager
def guard(claim: int) -> Iterator[None]:
    """Fail every allocation beyond twice `claim` bytes (address space, touched or not); end the process if it hangs.

    For child processes: the limit is the whole process's.
    """
    faulthandler.register(
        signal.SIGALRM, chain=True
    )  # chain: then it ends, as by default. No thread: that takes memory
    signal.alarm(SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * claim + SLACK, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
