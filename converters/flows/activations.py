"""Activations of other projects' networks, as modules or functions, by our names."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastgen.errors import ConfigError
from fastgen.models.flow.networks import ACTIVATIONS

NAMES = {"relu", "elu", "silu", "gelu", "tanh", "leaky_relu"}
SUPPORTED = ", ".join(ACTIVATIONS)


def activation_of(act: Any, where: str) -> tuple[str, float]:
    """Our name, and the slope of a leaky_relu (0.01 for all others). Raises ConfigError."""
    if isinstance(act, nn.LeakyReLU):
        return ("leaky_relu", act.negative_slope) if act.negative_slope else ("relu", 0.01)
    for name, kind in ACTIVATIONS.items():
        if type(act) is kind:
            usual = (
                not (isinstance(act, nn.ELU) and act.alpha != 1)
                and getattr(act, "approximate", "none") == "none"
            )
            if not usual:
                raise ConfigError(
                    f"{act} has an option that is not supported; supported: its default", argument=where
                )
            return name, 0.01
    named = getattr(act, "__name__", "")
    # Functions of torch.nn.functional, and of torch (tanh); a function of that name elsewhere may be another.
    if named in NAMES and str(getattr(act, "__module__", None) or "torch").startswith("torch"):
        return named, 0.01
    raise ConfigError(
        f"the activation {named or type(act).__name__} is not supported; supported: {SUPPORTED}",
        argument=where,
    )
