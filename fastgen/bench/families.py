"""The models that are timed: those that families name, and models of random weights for shapes the zoo lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..architectures import ARCHITECTURES, builders
from ..checkpoint import Part, Spec, save
from ..engines import DiffusionEngine
from ..errors import ConfigError
from ..families import FAMILIES
from . import diffusion, verbs


def _unet(pixels: int, widths: list[int], attends: int) -> Spec:
    """A U-Net of Ho et al. 2020 for images of 3 x `pixels` x `pixels`; attends: the level with attention, from 0."""
    down = ["DownBlock2D"] * len(widths)
    down[attends] = "AttnDownBlock2D"
    config: dict[str, Any] = {
        "sample_size": [pixels, pixels],
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    }
    return Spec("diffusion", {"unet": Part("unet", config)}, {"schedule": {}, "solver": "ddim"})


def _gan(name: str, judge: str, generator: dict[str, Any], discriminator: dict[str, Any]) -> Spec:
    """A generator and its discriminator."""
    parts = {"generator": Part(name, generator), "discriminator": Part(judge, discriminator)}
    return Spec("gan", parts, {})


# Of 32x32 pixels, as in the code of BigGAN for PyTorch.
SMALL_GAN = {"multipliers": [4, 4, 4, 4], "num_classes": 10, "attention": [1]}
SMALL_JUDGE = {"size": 32, "multipliers": [4, 4, 4, 4], "halvings": 2, "num_classes": 10, "attention": [0]}


def _style(name: str, size: int, widths: list[int], channels: int = 3, numbers: int = 256) -> Spec:
    """A style-based generator for images of channels x `size` x `size`; numbers: of z and of w."""
    config: dict[str, Any] = {
        "size": size,
        "widths": widths,
        "out_channels": channels,
        "latent": numbers,
        "w_dim": numbers,
    }
    if name == "stylegan":
        # A constant that is not trained yet has no deviation, and AdaIN divides by it.
        config["input"] = "latent"
    return Spec("gan", {"generator": Part(name, config)}, {})


# Channels by resolution, the coarsest first: of 28x28 pixels, of 64x64, and of 256x256 as in the papers' code.
STYLED28, STYLED64, STYLED256 = [128, 64, 32], [256, 256, 128, 64, 32], [512, 512, 512, 512, 256, 128, 64]


def _autoencoder(pixels: int, widths: list[int], groups: int, layers: int = 1) -> Spec:
    """An AutoencoderKL of diffusers for images of 3 x `pixels` x `pixels`."""
    config: dict[str, Any] = {
        "sample_size": [pixels, pixels],
        "block_out_channels": widths,
        "norm_num_groups": groups,
        "layers_per_block": layers,
    }
    return Spec("vae", {"vae": Part("autoencoder_kl", config)}, {})


# Models of random weights: name -> its spec.
BUILT: dict[str, Spec] = {
    # The U-Net of google/ddpm-cifar10-32 (Ho et al. 2020), 35.7 M parameters.
    "random:cifar10": _unet(32, [128, 256, 256, 256], attends=1),
    # That of google/ddpm-celebahq-256, for 256x256 pixels, 113.7 M parameters.
    "random:celebahq256": _unet(256, [128, 128, 256, 256, 512, 512], attends=4),
    # Shapes of the smallest images in their papers.
    "random:realnvp": Spec(
        "flow", {"flow": Part("realnvp", {"sample_size": [32, 32], "in_channels": 3})}, {}
    ),
    "random:nice": Spec("flow", {"flow": Part("nice", {"sample_size": [28, 28]})}, {}),
    # Isola et al. 2017 on 256x256 pixels (54.4 M parameters; the 70x70 discriminator has 2.8 M),
    # and Zhu et al. 2017, section 7.2, with 9 blocks (11.4 M).
    "random:pix2pix-unet": Spec(
        "translate",
        {
            "generator": Part("unet_generator", {"dropout": True}),
            "discriminator": Part("patch_discriminator", {}),
        },
    ),
    "random:pix2pix-resnet": Spec(
        "translate",
        {"generator": Part("resnet_generator", {}), "discriminator": Part("pixel_discriminator", {})},
    ),
    # VGG-19 up to relu4_1 and its mirror image, 7.0 M parameters.
    "random:adain": Spec("style", {"network": Part("adain", {})}, {}),
    "random:vector_flow": Spec("flow", {"flow": Part("vector_flow", {"features": 6})}, {}),
    # Super-resolution x4 as released: BasicSR's MSRResNet, Real-ESRGAN's anime_6B and animevideov3.
    "random:msrresnet": Spec("upscale", {"upscaler": Part("msrresnet", {})}),
    "random:rrdbnet": Spec("upscale", {"upscaler": Part("rrdbnet", {"num_blocks": 6})}),
    "random:srvgg": Spec("upscale", {"upscaler": Part("srvgg", {})}),
    # The whole of Real-ESRGAN, 16.7 M parameters.
    "random:rrdbnet23": Spec("upscale", {"upscaler": Part("rrdbnet", {})}),
    # Burgess et al. 2018, for 64x64 pixels.
    "random:vae": Spec(
        "vae",
        {"vae": Part("vae", {"sample_size": [64, 64], "in_channels": 3, "channels": [32, 32, 32, 32]})},
        {},
    ),
    "random:vector_vae": Spec("vae", {"vae": Part("vector_vae", {"features": 6})}, {}),
    "random:autoencoder_kl": _autoencoder(64, [32, 64, 64], groups=16),
    # That of Stable Diffusion 1, for 256x256 pixels, 83.7 M parameters.
    "random:sd-vae": _autoencoder(256, [128, 256, 512, 512], groups=32, layers=2),
    "random:hvae": Spec("vae", {"vae": Part("hvae", {"sample_size": [32, 32]})}, {}),
    # DCGAN's layers, for 64x64 pixels.
    "random:wgan_gp": _gan("wgan_gp", "wgan_critic", {}, {}),
    "random:sagan": _gan(
        "sagan", "sagan_discriminator", {**SMALL_GAN, "channels": 32}, {**SMALL_JUDGE, "channels": 32}
    ),
    "random:biggan": _gan(
        *("biggan", "biggan_discriminator"),
        *({**SMALL_GAN, "latent": 80, "channels": 64}, {**SMALL_JUDGE, "channels": 64}),
    ),
    "random:biggan_deep": _gan(
        *("biggan_deep", "biggan_deep_discriminator"),
        *({**SMALL_GAN, "channels": 64}, {**SMALL_JUDGE, "multipliers": [4, 4, 4], "channels": 64}),
    ),
    # The paper's, for 128x128 pixels: 70 M and 88 M parameters.
    "random:biggan128": _gan("biggan", "biggan_discriminator", {}, {}),
    "random:stylegan28": _style("stylegan", 28, STYLED28, channels=1),
    "random:stylegan2-28": _style("stylegan2", 28, STYLED28, channels=1),
    "random:stylegan64": _style("stylegan", 64, STYLED64),
    "random:stylegan2-64": _style("stylegan2", 64, STYLED64),
    "random:stylegan256": _style("stylegan", 256, STYLED256, numbers=512),
    "random:stylegan2-256": _style("stylegan2", 256, STYLED256, numbers=512),
}


def on_disk(name: str, folder: Path) -> str:
    """What `fastgen.load` takes for a model: a name in BUILT is written into `folder`, others are as they are."""
    if name not in BUILT:
        if name.startswith("random:"):
            known = ", ".join(BUILT)
            raise ConfigError(
                f"expected one of {known}, or what fastgen.load takes, got {name!r}", argument="model"
            )
        return name
    torch.manual_seed(0)
    tensors = {
        f"{part}.{key}": value
        for part, build in builders(BUILT[name]).items()
        for key, value in build().state_dict().items()
    }
    place = folder / name.replace(":", "-")
    save(place, BUILT[name], tensors)
    return str(place)


def workload(engine: Any) -> ModuleType:
    """The module whose `contests`, `fresh` and `BASELINES` time an engine: verbs, but for the sampling loop."""
    return diffusion if isinstance(engine, DiffusionEngine) else verbs


def models(device_type: str) -> list[str]:
    """One model for every architecture that a family names; on "cuda" the large ones, too."""
    found: list[str] = []
    for family in FAMILIES.values():
        found += [*family.models.values(), *(family.large if device_type == "cuda" else ())]
    return list(dict.fromkeys(found))


def without_model() -> list[str]:
    """Architectures that no family names a model for, of those that engines run."""
    known = {architecture for family in FAMILIES.values() for architecture in family.models}
    return [name for name, kind in ARCHITECTURES.items() if name not in known and not kind.training]


def first_models() -> Sequence[str]:
    """The model that stands for each family in the tour."""
    return [next(iter(family.models.values())) for family in FAMILIES.values() if family.models]
