"""The family of diffusion models."""

from __future__ import annotations

from . import diffusion_evaluate, diffusion_sample
from .diffusion_mlp_recipe import DiffusionMLPRecipe
from .family import Family
from .unet_recipe import UNetRecipe

FAMILY = Family(
    name="diffusion",
    engine="fastgen.engines.diffusion:DiffusionEngine",
    flags={"sample": diffusion_sample.FLAGS, "evaluate": diffusion_evaluate.FLAGS},
    sampling=diffusion_sample.SAMPLING,
    likelihood=True,
    chunk=16,
    models={"unet": "zoo:ddpm-mnist", "diffusion_mlp": "random:diffusion_mlp"},
    large=("random:cifar10",),
    recipes={"unet": UNetRecipe(), "diffusion_mlp": DiffusionMLPRecipe()},
)
