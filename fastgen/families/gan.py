"""The family of GANs."""

from __future__ import annotations

from . import gan_sample
from .family import Family
from .gan_recipe import RECIPES
from .stylegan_recipe import RECIPES as STYLE_RECIPES

FAMILY = Family(
    name="gan",
    engine="fastgen.engines.gan:GANEngine",
    flags={"sample": gan_sample.FLAGS},
    sampling=gan_sample.SAMPLING,
    models={
        "dcgan": "zoo:gan-mnist",
        "dcgan_discriminator": "zoo:gan-mnist",
        "wgan_gp": "random:wgan_gp",
        "wgan_critic": "random:wgan_gp",
        "sagan": "random:sagan",
        "sagan_discriminator": "random:sagan",
        "biggan": "random:biggan",
        "biggan_discriminator": "random:biggan",
        "biggan_deep": "random:biggan_deep",
        "biggan_deep_discriminator": "random:biggan_deep",
        "stylegan": "random:stylegan28",
        "stylegan2": "random:stylegan2-28",
    },
    large=("random:biggan128", "random:stylegan256", "random:stylegan2-256"),
    recipes={**RECIPES, **STYLE_RECIPES},
)
