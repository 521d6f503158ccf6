"""The family of diffusion models."""

from __future__ import annotations

from . import diffusion_sample
from .diffusion_mlp_recipe import DiffusionMLPRecipe
from .family import Family
from .unet_recipe import UNetRecipe

FAMILY = Family(
    name="diffusion",
    engine="fastgen.engines.diffusion:DiffusionEngine",
    flags={"sample": diffusion_sample.FLAGS},
    sampling=diffusion_sample.SAMPLING,
    models={"unet": "zoo:ddpm-mnist", "diffusion_mlp": "random:diffusion_mlp"},
    large=("random:cifar10",),
    recipes={"unet": UNetRecipe(), "diffusion_mlp": DiffusionMLPRecipe()},
)
