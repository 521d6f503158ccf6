"""The family of networks that give a picture the style of another."""

from __future__ import annotations

from .family import Family
from .style_recipe import RECIPES

FAMILY = Family(
    name="style",
    engine="fastgen.engines.style:StyleEngine",
    models={"microast": "zoo:microast", "adain": "random:adain"},
    recipes=RECIPES,
    use="fastgen stylize CONTENT STYLE --model {} -o OUT",
)
