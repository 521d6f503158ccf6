"""How far two tiles differ where they meet: the seam that a halo below the receptive field may leave."""

from __future__ import annotations

from torch import Tensor


class Seams:
    """Lines of pixels on both sides of where windows meet, until the second of the two has come.

    error: the greatest difference of two windows' values there, in the units of the results ([-1, 1]).
    """

    def __init__(self) -> None:
        self.error = 0.0
        self._waiting: dict[tuple[int, ...], Tensor] = {}

    def seen(self, place: tuple[int, ...], pixels: Tensor) -> None:
        """pixels: what one window has at `place`; the other one's are compared with them. Not finite: no seam."""
        other = self._waiting.pop(place, None)
        if other is None:
            self._waiting[place] = pixels.clone()
        else:
            difference = (pixels - other).abs().nan_to_num(nan=0.0)
            self.error = max(self.error, float(difference.max()))
