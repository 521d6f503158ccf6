"""Networks for style transfer of other projects: folders with a state dict for each part."""

from __future__ import annotations

from ..base import Converter
from .adain import CONVERTER as ADAIN
from .microast import CONVERTER as MICROAST

CONVERTERS: dict[str, Converter] = {"pytorch-adain": ADAIN, "microast": MICROAST}
