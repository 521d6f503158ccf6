"""Normalising flows of other projects: files with a state dict, and live modules."""

from __future__ import annotations

from ..base import Converter
from .nflows import CONVERTER as NFLOWS
from .normflows import CONVERTER as NORMFLOWS
from .rosinality import CONVERTER as ROSINALITY
from .uva import CONVERTER as UVA
from .zuko import CONVERTER as ZUKO

CONVERTERS: dict[str, Converter] = {
    "nflows": NFLOWS,
    "normflows": NORMFLOWS,
    "rosinality": ROSINALITY,
    "uva": UVA,
    "zuko": ZUKO,
}
