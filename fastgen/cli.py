"""``fastgen sample | train | convert | info | verify``. User errors are one clear line and a non-zero exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from . import __version__
from .commands import convert, info, sample, train, verify
from .errors import FastgenError, Terminated


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="fastgen", description="Fast sampling from generative models.")
    top.add_argument("--version", action="version", version=f"fastgen {__version__}")
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for command in (sample, train, convert, info, verify):
        command.add(subparsers)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own); returns the exit code.

    128 + the signal's number after Ctrl-C and SIGTERM, as shells have it.
    """
    args = parser().parse_args(arguments)
    try:
        with _sigterm_like_ctrl_c():
            code = args.run(args)
            sys.stdout.flush()  # a full disk shows here, not after the exit code is given
            return code
    except BrokenPipeError:  # `fastgen info --solvers | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (FastgenError, OSError) as error:  # anything else is a bug of ours, shown with its traceback
        print(f"fastgen: error: {_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        said = "; ".join(["terminated" if terminated else "interrupted", *map(str, stop.args)])
        print(f"fastgen: {_line(said)}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def _line(text: str) -> str:
    """`text` on one line and harmless to a terminal: it may quote a file that nobody vouches for."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """SIGTERM raises, so that whatever is half done is undone: by default it would kill on the spot."""
    main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
