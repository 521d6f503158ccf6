"""normflows (1.7): RealNVP and its like on vectors, Glow on images.

The package writes its formulas from latents to data; here its layers come in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...base import Report
from ..source import Result, Source, converter
from ..state import State
from . import glow, vector
from .facts import SUPPORTED, facts
from .options import NormflowsOptions


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of a NormalizingFlow, ClassCondFlow or MultiscaleFlow."""
    found = set(names)
    return bool({"q0.loc", "q0.0.loc"} & found) and any(name.startswith("flows.0.") for name in found)


def read(state: State, options: NormflowsOptions, report: Report) -> Result:
    """The flow."""
    read_kind = glow.read if state.has("q0.0.loc") else vector.read
    return read_kind(state, options, report)


CONVERTER = converter(
    Source(
        name="normflows",
        about="RealNVP and Glow of normflows: a state dict, or the live module",
        supported=SUPPORTED,
        options=NormflowsOptions,
        recognises=recognises,
        read=read,
        facts=facts,
    )
)
