"""The family of diffusion models."""

from __future__ import annotations

from .family import Family

FAMILY = Family(
    name="diffusion",
    engine="fastgen.engines.diffusion:DiffusionEngine",
    models={"unet": "zoo:ddpm-mnist"},
    large=("random:cifar10",),
)
