"""Errors that tell a user what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class FastgenError(Exception):
    """Base of every error raised on purpose by fastgen for something the user can mend.

    argument: what the error is about: an argument's, option's or field's name, or a file; None where there is no such
    thing. The message begins with it; reason: the rest of the message.
    """

    def __init__(self, message: object = "", *, argument: object = None) -> None:
        super().__init__(message if argument is None else f"{argument}: {message}")
        self.argument = None if argument is None else str(argument)
        self.reason = str(message)


class ConfigError(FastgenError, ValueError):
    """A configuration (JSON or keyword) is unknown, wrongly typed or out of range."""


class ArgumentError(FastgenError, TypeError):
    """A keyword argument does not exist, or two of them mean the same thing."""


class CheckpointError(FastgenError, ValueError):
    """A checkpoint folder or file is missing, damaged or does not fit its configuration."""


class DataError(FastgenError, ValueError):
    """Training data cannot be found or read."""


class WriteError(FastgenError, OSError):
    """A file cannot be written (full disk, no permission); what was there before is whole. `errno` says why."""


class TrainingError(FastgenError, RuntimeError):
    """A training run cannot go on; its last save is kept."""


class CaptureError(FastgenError, RuntimeError):
    """A step does something that a captured graph cannot replay (host sync, host random numbers, copies)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C raises KeyboardInterrupt: no error of the user's, the process is to end."""


class OutOfMemoryError(FastgenError, MemoryError):
    """Not even one sample fits in the device's memory."""


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """An error of the block about the argument of one name becomes one about another: ``{"seed": "--seed"}``."""
    try:
        yield
    except FastgenError as error:
        if error.argument is None or error.argument not in names:
            raise
        raise type(error)(error.reason, argument=names[error.argument]) from error
