"""What the commands, the benchmark and `fastgen.load` know of each generative family. Importing it needs no PyTorch.

A family is one entry of FAMILIES; everything that works for all families (load, sample, train, verify, info, the
benchmark) reads it from there.
"""

from . import diffusion, flow, gan, style, translate, upscale, vae
from .family import Family, Flag
from .sampling import GIF, Sampling

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        diffusion.FAMILY,
        flow.FAMILY,
        gan.FAMILY,
        style.FAMILY,
        translate.FAMILY,
        upscale.FAMILY,
        vae.FAMILY,
    )
}

__all__ = ["FAMILIES", "GIF", "Family", "Flag", "Sampling"]
