"""Small trained models that ship with the package: ``fastgen.load("zoo:ddpm-mnist")``."""

from pathlib import Path

ZOO = {
    "ddpm-mnist": "class-conditional diffusion model of handwritten digits, 1x28x28, 1.7 M parameters",
    "gan-mnist": "class-conditional GAN of handwritten digits, 1x28x28, with its discriminator",
    "glow-mnist": "class-conditional flow of handwritten digits, 1x28x28, with their likelihood",
}


def folder(name: str) -> Path:
    """The folder of model `name`. KeyError for a name that is not in ``ZOO``."""
    if name not in ZOO:
        raise KeyError(name)
    return Path(__file__).parent / name
