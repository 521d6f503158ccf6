"""The family of GANs."""

from __future__ import annotations

from . import gan_sample
from .family import Family
from .gan_recipe import RECIPES

FAMILY = Family(
    name="gan",
    engine="fastgen.engines.gan:GANEngine",
    flags={"sample": gan_sample.FLAGS},
    sampling=gan_sample.SAMPLING,
    models={"dcgan": "random:dcgan"},
    recipes=RECIPES,
)
