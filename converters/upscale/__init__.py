"""Super-resolution networks of other projects: files with a state dict, and live modules."""

from __future__ import annotations

from ..base import Converter
from .basicsr import CONVERTERS as BASICSR
from .srgan import CONVERTER as SRGAN

CONVERTERS: dict[str, Converter] = {**BASICSR, "srgan": SRGAN}
