"""``fastgen sample | train | convert | info``. User errors are one clear line on stderr and a non-zero exit code."""

from __future__ import annotations

import argparse
import os
import sys

from . import __version__
from .commands import convert, info, sample, train
from .errors import FastgenError


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="fastgen", description="Fast sampling from generative models.")
    top.add_argument("--version", action="version", version=f"fastgen {__version__}")
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for command in (sample, train, convert, info):
        command.add(subparsers)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own); returns the exit code."""
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except BrokenPipeError:  # `fastgen info --solvers | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (FastgenError, OSError) as error:  # anything else is a bug of ours, shown with its traceback
        print(f"fastgen: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fastgen: interrupted", file=sys.stderr)
        return 130
