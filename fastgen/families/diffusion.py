"""The family of diffusion models."""

from __future__ import annotations

from .family import Family
from .unet_recipe import UNetRecipe

FAMILY = Family(
    name="diffusion",
    engine="fastgen.engines.diffusion:DiffusionEngine",
    models={"unet": "zoo:ddpm-mnist"},
    large=("random:cifar10",),
    recipes={"unet": UNetRecipe()},
)
