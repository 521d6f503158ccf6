"""The family of diffusion models."""

from __future__ import annotations

from . import diffusion_sample
from .family import Family

FAMILY = Family(
    name="diffusion",
    engine="fastgen.engines.diffusion:DiffusionEngine",
    flags={"sample": diffusion_sample.FLAGS},
    sampling=diffusion_sample.SAMPLING,
    models={"unet": "zoo:ddpm-mnist"},
    large=("random:cifar10",),
)
