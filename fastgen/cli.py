"""The command line: ``fastgen sample``, ``fastgen train`` and the others.

User errors are one clear line and a non-zero exit code.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from . import __version__
from .commands import (
    compare,
    convert,
    edit,
    evaluate,
    export,
    info,
    inpaint,
    interpolate,
    metrics,
    mix,
    project,
    reconstruct,
    sample,
    stylize,
    train,
    translate,
    traverse,
    upscale,
    verify,
)
from .commands.arguments import one_line
from .errors import FastgenError, Terminated

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="fastgen", description="Fast sampling from generative models.")
    top.add_argument("--version", action="version", version=f"fastgen {__version__}")
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for command in (
        sample,
        interpolate,
        mix,
        project,
        edit,
        inpaint,
        translate,
        stylize,
        upscale,
        reconstruct,
        traverse,
        train,
        evaluate,
        metrics,
        compare,
        convert,
        export,
        info,
        verify,
    ):
        command.add(subparsers)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own); returns the exit code.

    128 + the signal's number after Ctrl-C and SIGTERM, as shells have it.
    """
    try:
        _open_standard_streams()
        with _plain_warnings(), _sigterm_like_ctrl_c():
            args = parser().parse_args(arguments)
            code = args.run(args)
            sys.stdout.flush()  # a full disk shows here, not after the exit code is given
            return code
    except BrokenPipeError:  # `fastgen info --solvers | head` has read enough
        _forget_output()
        return 141
    except (FastgenError, OSError) as error:  # anything else is a bug of ours, shown with its traceback
        said = str(error)
        if not isinstance(error, FastgenError) and error.errno in FULL:  # files are written by fastgen.files
            _forget_output()
            said = f"standard output: cannot be written: {error.strerror}"
        print(f"fastgen: error: {one_line(said)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        said = "; ".join(["terminated" if terminated else "interrupted", *map(str, stop.args)])
        print(f"fastgen: {one_line(said)}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def _open_standard_streams() -> None:
    """Give a process begun with closed ones (``>&-``) others: else a model's file would become its output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _forget_output() -> None:
    """What could not be written would be tried again, and complained of, when the process ends."""
    with suppress(OSError):  # UnsupportedOperation: of a caller that has put something else there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings meant for users are one line, without a place in the code."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *others: Any, **more: Any) -> None:
        if category is not UserWarning:  # of other packages, for programmers
            before(message, category, *others, **more)
        else:
            print(f"fastgen: warning: {one_line(str(message))}", file=sys.stderr)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = before


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
