"""GANs of other projects: files with a state dict, and live modules."""

from __future__ import annotations

from ..base import Converter
from .ajbrock_model import CONVERTER as AJBROCK
from .dcgan import CONVERTER as DCGAN
from .huggingface import CONVERTER as HUGGINGFACE
from .nvlabs import CONVERTER as NVLABS
from .stylegan import CONVERTER as STYLEGAN
from .stylegan2 import CONVERTER as STYLEGAN2

CONVERTERS: dict[str, Converter] = {
    "biggan-pytorch": AJBROCK,
    "dcgan": DCGAN,
    "nvlabs": NVLABS,
    "pytorch-pretrained-biggan": HUGGINGFACE,
    "style-based-gan-pytorch": STYLEGAN,
    "stylegan2-pytorch": STYLEGAN2,
}
