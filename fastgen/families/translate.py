"""The family of networks from images to images: pix2pix, CycleGAN's generators."""

from __future__ import annotations

from .family import Family
from .translate_recipe import ResNetGeneratorRecipe, UNetGeneratorRecipe

FAMILY = Family(
    name="translate",
    engine="fastgen.engines.translate:TranslateEngine",
    use="fastgen translate IMAGES -o FOLDER --model {}",
    models={
        "unet_generator": "random:pix2pix-unet",
        "resnet_generator": "random:pix2pix-resnet",
        "patch_discriminator": "random:pix2pix-unet",
        "pixel_discriminator": "random:pix2pix-resnet",
    },
    recipes={"unet_generator": UNetGeneratorRecipe(), "resnet_generator": ResNetGeneratorRecipe()},
)
