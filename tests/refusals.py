"""What tests ask of an error: its type, what it is about, and the data that its message must show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(
    kind: type[Exception], argument: object = None, *mentions: object
) -> Iterator[pytest.ExceptionInfo]:
    """The block must raise an error of `kind` whose `.argument` is `argument`.

    argument: the name of an argument, an option or a field, or a file; None: the error is about none of these, or is of
    a type without `.argument`. mentions: data that must occur in the message: a file's name, a number, a layer's name,
    an option that is suggested. No English: sentences may be edited without a test to change.
    """
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    found = getattr(caught.value, "argument", None) or None
    assert found == (None if argument is None else str(argument)), f"{found!r} is the argument of: {message}"
    for mention in mentions:
        assert str(mention) in message, f"{mention!r} is not in: {message}"


def names(message: str, *mentions: object) -> bool:
    """Whether `message`, of a command's stderr for instance, shows each of `mentions`: an option, a file, a number."""
    return all(str(mention) in message for mention in mentions)
