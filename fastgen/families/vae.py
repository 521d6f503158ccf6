"""The family of variational autoencoders."""

from __future__ import annotations

from .family import Family
from .vae_recipe import RECIPES

FAMILY = Family(
    name="vae",
    engine="fastgen.engines.vae:VAEEngine",
    likelihood=True,
    recipes=RECIPES,
)
