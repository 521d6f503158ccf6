"""A style as an engine has encoded it, to be used for many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError


@dataclass(frozen=True, eq=False)
class Style:
    """One or several styles, what ``StyleEngine.encode_style`` returns and ``stylize`` takes.

    codes: float32 [K, D], on the engine's device. sha256: of the weights that made them.
    """

    codes: Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int | slice) -> Style:
        """One of the styles, or some of them."""
        part = self.codes[index]
        return Style(part[None] if part.ndim == 1 else part, self.sha256)

    @classmethod
    def joined(cls, styles: Sequence[Style]) -> Style:
        """Several as one, in their order. Raises ConfigError for styles of different weights."""
        if len({style.sha256 for style in styles}) != 1:
            raise ConfigError("these were encoded by different weights", argument="style")
        return cls(torch.cat([style.codes for style in styles]), styles[0].sha256)
