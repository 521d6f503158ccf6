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
        device = styles[0].codes.device
        try:
            codes = torch.cat([style.codes.to(device) for style in styles])
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"their codes do not go together: {error}", argument="style") from error
        return cls(codes, styles[0].sha256)

    def on(self, device: torch.device, size: int) -> Style:
        """Itself with its codes on a device. size: D of the codes that are expected. Raises ConfigError."""
        codes = self.codes
        if not isinstance(codes, Tensor) or not codes.is_floating_point() or codes.is_meta:
            got = f"{codes.dtype} on {codes.device}" if isinstance(codes, Tensor) else type(codes).__name__
            raise ConfigError(f"expected codes of floats, got {got}", argument="style")
        if codes.ndim != 2 or codes.shape[1] != size:
            raise ConfigError(f"expected codes [styles, {size}], got {list(codes.shape)}", argument="style")
        if not len(codes):
            raise ConfigError("expected at least one style, got none", argument="style")
        codes = codes.detach().to(device, torch.float32)
        if not bool(codes.isfinite().all()):
            raise ConfigError("its code has values that are NaN or infinite", argument="style")
        return Style(codes, self.sha256)
