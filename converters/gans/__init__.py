"""GANs of other projects: files with a state dict, and live modules."""

from __future__ import annotations

from ..base import Converter
from .ajbrock_model import CONVERTER as AJBROCK
from .dcgan import CONVERTER as DCGAN
from .huggingface import CONVERTER as HUGGINGFACE

CONVERTERS: dict[str, Converter] = {
    "biggan-pytorch": AJBROCK,
    "dcgan": DCGAN,
    "pytorch-pretrained-biggan": HUGGINGFACE,
}
