"""The family of networks from images to images: pix2pix."""

from __future__ import annotations

from .family import Family
from .translate_recipe import ResNetGeneratorRecipe, UNetGeneratorRecipe

FAMILY = Family(
    name="translate",
    engine="fastgen.engines.translate:TranslateEngine",
    use="fastgen translate IMAGES -o FOLDER --model {}",
    recipes={"unet_generator": UNetGeneratorRecipe(), "resnet_generator": ResNetGeneratorRecipe()},
)
