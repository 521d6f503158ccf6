"""What engines of data with latents share, flows and VAEs: checks of latents and of images, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..config import shown
from ..errors import ConfigError
from ..images import to_output, within
from .arguments import as_index
from .flow.data import check_floats
from .streams import Streams

MAX_STEPS = 10_000  # of an interpolation


class LatentEngine(Streams):
    """An engine that encodes x to latents, a tensor for each scale or group, and decodes them.

    It has `state_dtype`, the type of x and of latents; where x is images, `value_range` says so.
    """

    if TYPE_CHECKING:

        @property
        def state_dtype(self) -> torch.dtype: ...

    def _floats(self, name: str, x: Any, shape: Sequence[int]) -> Tensor:
        """x [n, *shape] in the state's type on the device. Raises ConfigError."""
        check_floats(name, x, shape)
        self._check_alive()
        return x.detach().to(self.device, self.state_dtype)

    def _latent_list(self, latents: Any, shapes: Sequence[Sequence[int]], what: str) -> list[Tensor]:
        """The latents [n, *shape] of every scale or group (`what`). Raises ConfigError."""
        if not isinstance(latents, (list, tuple)) or len(latents) != len(shapes):
            raise ConfigError(
                f"expected a list of {len(shapes)} tensors, one per {what}, got {shown(latents)}",
                argument="latents",
            )
        given: list[Tensor] = []
        for i, (value, shape) in enumerate(zip(latents, shapes, strict=True)):
            given.append(self._floats(f"latents[{i}]", value, shape))
            if len(given[i]) != len(given[0]):
                raise ConfigError(
                    f"expected {len(given[0])} samples, got {len(given[i])}", argument=f"latents[{i}]"
                )
        return given

    def _between(self, a: Sequence[Tensor], b: Sequence[Tensor], steps: int) -> list[Tensor]:
        """Latents [n * steps, *shape] along straight lines, `steps` for each pair. Raises ConfigError."""
        if len(a[0]) != len(b[0]):
            raise ConfigError(f"expected as many samples as a ({len(a[0])}), got {len(b[0])}", argument="b")
        weights = torch.linspace(0, 1, steps, device=self.device, dtype=self.state_dtype)
        return [
            torch.lerp(p[:, None], q[:, None], weights.view(1, -1, *[1] * (p.dim() - 1))).flatten(0, 1)
            for p, q in zip(a, b, strict=True)
        ]

    def _shown(self, x: Tensor, output_type: str) -> Tensor | np.ndarray | list:
        """x as `output_type`, images clipped."""
        return to_output(within(x, self.value_range), output_type)

    def _check_output(self, output_type: str) -> None:
        to_output(None, output_type)
        if output_type != "pt" and self.value_range is None:
            raise ConfigError(
                f"{output_type} is for images in [-1, 1]; this model's data has its own units: take pt",
                argument="output_type",
            )


def check_steps(steps: Any) -> int:
    """How many samples a row of an interpolation has. Raises ConfigError."""
    count = as_index(steps)
    if type(count) is not int or not 2 <= count <= MAX_STEPS:
        raise ConfigError(f"expected an int from 2 to {MAX_STEPS}, got {shown(steps)}", argument="steps")
    return count
