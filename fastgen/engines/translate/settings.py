"""Settings of a checkpoint that translates images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config import one_of, shown
from ...errors import ConfigError

MODES = ("instance", "batch", "running")


@dataclass(frozen=True)
class TranslateSettings:
    """Settings of ``Spec(engine="translate")``: what `translate` and `score` use where the caller says nothing.

    norm_mode: whose statistics batch norms take: those of each image ("instance"), or of training ("running").
    dropout: whether dropout draws masks by seeds, where the network has it; without it, translations are the same
        in every call.
    """

    norm_mode: str = one_of("instance", "running", default="instance")
    dropout: bool = False


def check_mode(norm_mode: Any) -> str:
    """A `norm_mode` that a caller gave. Raises ConfigError."""
    if not isinstance(norm_mode, str) or norm_mode not in MODES:
        raise ConfigError(f"expected one of {', '.join(MODES)}, got {shown(norm_mode)}", argument="norm_mode")
    return norm_mode
