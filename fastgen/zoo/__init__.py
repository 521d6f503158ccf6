"""Small trained models that ship with the package: ``fastgen.load("zoo:ddpm-mnist")``."""

from pathlib import Path

ZOO = {
    "ddpm-mnist": "class-conditional diffusion model of handwritten digits, 1x28x28, 1.7 M parameters",
    "gan-mnist": "class-conditional GAN of handwritten digits, 1x28x28, with its discriminator",
    "glow-mnist": "class-conditional flow of handwritten digits, 1x28x28, with their likelihood",
    "pix2pix-mnist": "outlines of handwritten digits to digits, grey, trained on 28x28",
    "microast": "style transfer by MicroAST, pictures of any size, 0.47 M parameters",
    "srgan-x2": "super-resolution of photographs by 2 (SRGAN of leftthomas), 0.6 M parameters",
    "srgan-x4": "super-resolution of photographs by 4 (SRGAN of leftthomas), 0.7 M parameters",
    "stylegan-mnist": "class-conditional StyleGAN2 of handwritten digits, 1x28x28, 0.1 M parameters",
    "vae-mnist": "class-conditional VAE of handwritten digits, 1x28x28, with a bound of their likelihood",
}
# Pictures that ship with the package: name -> file in this folder. Their terms are said in README.md beside them.
EXAMPLES = {"cat": "microast/cat.jpg", "strokes": "microast/strokes.jpg"}


def folder(name: str) -> Path:
    """The folder of model `name`. KeyError for a name that is not in ``ZOO``."""
    if name not in ZOO:
        raise KeyError(name)
    return Path(__file__).parent / name


def example(name: str) -> Path:
    """The file of a picture that ships with the package. KeyError for a name that is not in ``EXAMPLES``."""
    return Path(__file__).parent / EXAMPLES[name]
