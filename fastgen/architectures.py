"""Every network fastgen can build: a name in a checkpoint -> its configuration, its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

from .checkpoint import Part, Spec
from .config import from_dict
from .errors import ConfigError
from .models.building import in_float32

if TYPE_CHECKING:
    from .exports import ExportForm


@dataclass(frozen=True)
class Architecture:
    """How to build a network: a config dataclass and a class that takes an instance of it.

    exports: its functions that can be written as ONNX files. no_export: why there are none. training: whether it is a
    part of training alone, which no engine runs.
    """

    config: type
    module: Callable[[Any], nn.Module]
    exports: tuple[ExportForm, ...] = ()
    no_export: str = ""
    training: bool = False


class _Listed(Architecture):
    """A network `name` and its config `nameConfig` in a module of ``fastgen.models``, which is imported when used.

    exports: a name in ``fastgen.exports``; none for what is a part of training alone.
    """

    def __init__(self, module: str, name: str, exports: str = "", *, training: bool = False) -> None:
        why = "it is a part of training alone" if training else ""
        self.__dict__.update(place=(module, name), forms=exports, no_export=why, training=training)

    def _get(self, suffix: str) -> Any:
        module, name = self.__dict__["place"]
        return getattr(import_module(f".models.{module}", __package__), name + suffix)

    @cached_property
    def config(self) -> type:
        found: type = self._get("Config")
        return found

    @cached_property
    def module(self) -> Callable[[Any], nn.Module]:
        found: Callable[[Any], nn.Module] = self._get("")
        return found

    @cached_property
    def exports(self) -> tuple[ExportForm, ...]:
        if not self.__dict__["forms"]:
            return ()
        forms = getattr(import_module(".exports", __package__), self.__dict__["forms"])
        return forms if isinstance(forms, tuple) else (forms,)


ARCHITECTURES: dict[str, Architecture] = {
    "adain": _Listed("style.adain", "AdaINTransfer", "STYLE"),
    "autoencoder_kl": _Listed("vae.autoencoder_kl", "AutoencoderKL", "VAE_FORMS"),
    "biggan": _Listed("gan.biggan", "BigGAN", "GAN_GENERATOR"),
    "biggan_deep": _Listed("gan.biggan", "BigGANDeep", "GAN_GENERATOR"),
    "biggan_deep_discriminator": _Listed("gan.biggan", "BigGANDeepDiscriminator", "GAN_DISCRIMINATOR"),
    "biggan_discriminator": _Listed("gan.biggan", "BigGANDiscriminator", "GAN_DISCRIMINATOR"),
    "dcgan": _Listed("gan.dcgan", "DCGAN", "GAN_GENERATOR"),
    "dcgan_discriminator": _Listed("gan.dcgan", "DCGANDiscriminator", "GAN_DISCRIMINATOR"),
    "glow": _Listed("flow.glow", "Glow", "FLOW"),
    "hvae": _Listed("vae.hierarchical", "HierarchicalVAE", "VAE_FORMS"),
    "microast": _Listed("style.microast", "MicroAST", "STYLE"),
    "image_pool": _Listed("translate.pool", "ImagePool", training=True),
    "msrresnet": _Listed("upscale.msrresnet", "MSRResNet", "UPSCALER"),
    "nice": _Listed("flow.nice", "NICE", "FLOW"),
    "patch_discriminator": _Listed("translate.discriminators", "PatchDiscriminator", "DISCRIMINATOR"),
    "pixel_discriminator": _Listed("translate.discriminators", "PixelDiscriminator", "DISCRIMINATOR"),
    "realnvp": _Listed("flow.realnvp", "RealNVP", "FLOW"),
    "resnet_generator": _Listed("translate.resnet", "ResNetGenerator", "GENERATOR"),
    "rrdbnet": _Listed("upscale.rrdbnet", "RRDBNet", "UPSCALER"),
    "sr_discriminator": _Listed("upscale.discriminator", "SRDiscriminator", training=True),
    "srresnet": _Listed("upscale.srresnet", "SRResNet", "UPSCALER"),
    "srvgg": _Listed("upscale.srvgg", "SRVGG", "UPSCALER"),
    "sagan": _Listed("gan.sagan", "SAGAN", "GAN_GENERATOR"),
    "sagan_discriminator": _Listed("gan.sagan", "SAGANDiscriminator", "GAN_DISCRIMINATOR"),
    "stylegan": _Listed("gan.stylegan.stylegan", "StyleGAN", "STYLEGAN"),
    "stylegan2": _Listed("gan.stylegan.stylegan2", "StyleGAN2", "STYLEGAN"),
    "stylegan2_discriminator": _Listed("gan.stylegan.discriminator", "StyleGAN2Discriminator", training=True),
    "stylegan_discriminator": _Listed("gan.stylegan.discriminator", "StyleGANDiscriminator", training=True),
    "unet": _Listed("unet", "UNet", "DENOISER"),
    "unet_generator": _Listed("translate.unet", "UNetGenerator", "GENERATOR"),
    "vae": _Listed("vae.convolutional", "ConvolutionalVAE", "VAE_FORMS"),
    "vector_flow": _Listed("flow.vector", "VectorFlow", "FLOW"),
    "vector_vae": _Listed("vae.vector", "VectorVAE", "VAE_FORMS"),
    "wgan_critic": _Listed("gan.wgan", "Critic", "GAN_DISCRIMINATOR"),
    "wgan_gp": _Listed("gan.wgan", "WGAN", "GAN_GENERATOR"),
}


def part_config(part: Part, where: str) -> Any:
    """The checked config dataclass of a checkpoint's part."""
    if part.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"unknown architecture {part.architecture!r}; known: {', '.join(ARCHITECTURES)}", argument=where
        )
    return from_dict(ARCHITECTURES[part.architecture].config, part.config, f"{where}.config")


def builders(spec: Spec) -> dict[str, Callable[[], nn.Module]]:
    """A function for each part of `spec` that makes its untrained network, in float32. Configs are checked at once."""
    made: dict[str, Callable[[], nn.Module]] = {}
    for name, part in spec.parts.items():
        config = part_config(part, f"parts.{name}")
        made[name] = partial(_built, ARCHITECTURES[part.architecture], config)
    return made


def _built(architecture: Architecture, config: Any) -> nn.Module:
    with in_float32():
        return architecture.module(config)
