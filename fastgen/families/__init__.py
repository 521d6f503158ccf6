"""What the commands, the benchmark and `fastgen.load` know of each generative family. Importing it needs no PyTorch.

A family is one entry of FAMILIES; everything that works for all families (load, sample, train, verify, info, the
benchmark) reads it from there.
"""

from . import diffusion, flow, gan, translate
from .family import Family, Flag
from .sampling import GIF, Sampling

FAMILIES: dict[str, Family] = {
    family.name: family for family in (diffusion.FAMILY, flow.FAMILY, translate.FAMILY, gan.FAMILY)
}

__all__ = ["FAMILIES", "GIF", "Family", "Flag", "Sampling"]
