"""Pickles looked over before they are read: operations whose cost bears no relation to the file's size are refused.

`pickle.Unpickler` allocates a table for whatever number of a memo it meets, and a byte string of whatever length it
meets; and Python computes the hash of a tuple by recursion in C without a limit, so tuples within tuples as the key of
a dictionary end the process. Nothing is built here: an operation's effect is followed on a stack of depths.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

MAX_TUPLES = 500  # tuples within one another; networks have a few for each level of layers

_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE")
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")


def scan(file: Any) -> None:
    """Go through one pickle to its end. file: has `read` that never allocates more than there is, such as a mmap.

    Raises UnpicklingError or ValueError for lengths beyond the end, numbers of a memo that nobody would give, tuples
    more than `MAX_TUPLES` deep, and operations without operands.
    """
    stack: list[int | None] = []  # how deep tuples are nested in each value at most; None: a mark
    memo: dict[int, int] = {}
    argument: Any
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        name = operation.name
        if name in _PUT:
            index = len(memo) if argument is None else argument
            if index > count:  # picklers number from 0 or 1
                raise pickle.UnpicklingError(f"number {index} in a memo of at most {count}")
            memo[index] = _top(stack)
        elif name in _GET:
            if argument not in memo:
                raise pickle.UnpicklingError(f"nothing has the number {argument}")
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(_top(stack))
        elif name == "POP":
            if not stack:
                raise pickle.UnpicklingError("an operation without operands")
            stack.pop()
        else:
            # What a function returns, and a container once it is changed, may hold all that the operation took.
            depth = max(_taken(stack, operation.stack_before), default=0) + (name in _TUPLES)
            if depth > MAX_TUPLES:
                raise pickle.UnpicklingError(f"tuples more than {MAX_TUPLES} deep")
            stack += [None if kind is pickletools.markobject else depth for kind in operation.stack_after]


def _top(stack: list[int | None]) -> int:
    if not stack or stack[-1] is None:
        raise pickle.UnpicklingError("an operation without operands")
    return stack[-1]


def _taken(stack: list[int | None], operands: list[Any]) -> list[int]:
    """The operands, taken off the stack."""
    found = []
    if pickletools.markobject in operands:
        while stack and stack[-1] is not None:
            found.append(_top(stack))
            stack.pop()
        if not stack:
            raise pickle.UnpicklingError("an operation without a mark")
        stack.pop()
        operands = operands[: operands.index(pickletools.markobject)]
    for _ in operands:
        found.append(_top(stack))
        stack.pop()
    return found
