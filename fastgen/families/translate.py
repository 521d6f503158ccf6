"""The family of networks from images to images."""

from __future__ import annotations

from .family import Family

FAMILY = Family(
    name="translate",
    engine="fastgen.engines.translate:TranslateEngine",
    models={
        "unet_generator": "random:pix2pix-unet",
        "resnet_generator": "random:pix2pix-resnet",
        "patch_discriminator": "random:pix2pix-unet",
        "pixel_discriminator": "random:pix2pix-resnet",
    },
)
