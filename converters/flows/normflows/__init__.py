"""normflows (1.7): RealNVP and its like on vectors, Glow on images.

The package writes its formulas from latents to data; here its layers come in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ...base import Report
from ..source import Result, Source, converter
from ..state import State
from . import glow, vector
from .facts import SUPPORTED, facts
from .options import OWN, SCALE_MAPS, NormflowsOptions


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of a NormalizingFlow, ClassCondFlow or MultiscaleFlow."""
    found = set(names)
    return bool({"q0.loc", "q0.0.loc"} & found) and any(name.startswith("flows.0.") for name in found)


def read(state: State, options: NormflowsOptions, report: Report) -> Result:
    """The flow."""
    images = state.has("q0.0.loc")
    if options.scale_map == OWN:
        block = "GlowBlock" if images else "AffineCouplingBlock"
        options = replace(options, scale_map=SCALE_MAPS[block].value)
        said = f"scale_map = {options.scale_map}, {block}'s default"
        report.assumed[:] = [line.replace(f"scale_map = {OWN}", said) for line in report.assumed]
    return (glow.read if images else vector.read)(state, options, report)


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
