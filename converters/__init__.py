"""Other projects' checkpoints to fastgen's and back: one file or folder a source. Installed as ``fastgen.converters``.

converter = detect(folder)                # by content; None for fastgen's own folders
converted = converter.read(folder, None)  # spec, tensors not read yet, a report of what was mapped and what not
"""

from __future__ import annotations

from pathlib import Path

from .base import Converted, Converter, Report, Tensors, build, check
from .diffusers import CONVERTER as DIFFUSERS
from .weights import save, write

CONVERTERS: dict[str, Converter] = {"diffusers": DIFFUSERS}


def detect(folder: Path) -> Converter | None:
    """The converter whose kind of model `folder` holds; None if no one's, as with fastgen's own."""
    return next((converter for converter in CONVERTERS.values() if converter.detect(folder)), None)


__all__ = [
    "CONVERTERS",
    "Converted",
    "Converter",
    "Report",
    "Tensors",
    "build",
    "check",
    "detect",
    "save",
    "write",
]
