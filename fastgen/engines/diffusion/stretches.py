"""Who holds which entries of a growing buffer: stretches by key, kept until their room is needed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any


class Stretches:
    """Stretches of a buffer whose entries before `begin` are taken."""

    def __init__(self, begin: int) -> None:
        self._begin = self._end = begin  # entries from `_end` on are free
        self._placed: dict[Hashable, _Stretch] = {}

    def hold(self, key: Hashable) -> int | None:
        """The start of the stretch of `key`, used once more; None where there is none."""
        placed = self._placed.get(key)
        if placed is None:
            return None
        placed.users += 1
        return placed.start

    def release(self, key: Hashable) -> None:
        """Undo one `hold` or `place`."""
        self._placed[key].users -= 1

    def room(self, length: int, capacity: int) -> int:
        """Where `length` entries may go, perhaps beyond `capacity`; unused stretches are dropped when it is full."""
        if self._end + length > capacity:
            self._placed = {key: p for key, p in self._placed.items() if p.users}
            start = self._begin
            for placed in sorted(self._placed.values(), key=lambda p: p.start):
                if placed.start - start >= length:
                    return start
                start = placed.start + placed.length
            self._end = start
        return self._end

    def place(self, key: Hashable, start: int, length: int, alive: Any) -> None:
        """Note a stretch in a place that `room` gave, used once. alive: what the key holds the address of."""
        self._placed[key] = _Stretch(start, length, alive)
        self._end = max(self._end, start + length)


class _Stretch:
    def __init__(self, start: int, length: int, alive: Any) -> None:
        self.start, self.length, self.alive, self.users = start, length, alive, 1
