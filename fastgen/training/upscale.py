"""Training super-resolution: a stage of pixels, then one against a discriminator (Ledig et al. 2017, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import Spec, load
from ..config import bounded, from_dict, one_of
from ..errors import ConfigError
from ..models.upscale.upscaler import Upscaler
from .adversarial import discriminator_loss, generator_loss
from .batch import Dataset
from .objective import Group, Step

BETAS = (0.9, 0.99)
NON_SATURATING = "non-saturating"
ADVERSARIAL = ("none", "non-saturating", "relativistic", "vanilla")  # the last is another name of the second
FEATURES = (32, 64, 96)  # channels of the small network that is the default of the perceptual loss


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig:
    """What the generator descends: the sum of these, each times its weight.

    pixel_loss: l1 or mse, between images in [-1, 1]. adversarial: none is the first stage; non-saturating,
    also called vanilla: -log D(G(x)), as SRGAN; relativistic: the average discriminator of ESRGAN (Jolicoeur-Martineau
    2018, section 4.3). perceptual_weight: of the L1 distance of features.
    """

    pixel_loss: str = one_of("l1", "mse", default="l1")
    pixel_weight: float = bounded(0.0, 1e6, default=1.0)
    adversarial: str = one_of(*ADVERSARIAL, default="none")
    adversarial_weight: float = bounded(0.0, 1e6, default=1e-3)
    perceptual_weight: float = bounded(0.0, 1e6, default=0.0)

    def __post_init__(self) -> None:
        if self.adversarial == "vanilla":
            object.__setattr__(self, "adversarial", NON_SATURATING)


class SmallFeatures(nn.Sequential):
    """Features of images [B, C, H, W] in [-1, 1] where the user has none: convolutions of fixed random filters.

    Distances of such features follow those of edges and textures at three scales; those of a network that was trained
    to see (a VGG) follow what people see more closely.
    """

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        generator, before = torch.Generator("cpu").manual_seed(0), channels
        for width in FEATURES:
            conv = nn.Conv2d(before, width, 3, stride=2, padding=1, device="cpu")
            with torch.no_grad():
                drawn = torch.randn(conv.weight.shape, generator=generator, dtype=torch.float32, device="cpu")
                conv.weight.copy_(drawn * (2 / drawn[0].numel()) ** 0.5)
                conv.bias.zero_()  # type: ignore[union-attr]
            layers += [conv, nn.LeakyReLU(0.2)]
            before = width
        super().__init__(*layers)
        self.requires_grad_(False).eval()


@dataclass
class SuperResolution:
    """The objective of an `Upscaler`, and of a discriminator in the second stage.

    The data set holds the large images; small ones are made of them by `shrunk`. features: a module from images
    [B, C, H, W] in [-1, 1] to features, for the perceptual loss; by default `SmallFeatures`. init: the folder of a
    model whose weights a new run begins with.
    """

    config: SuperResolutionConfig
    features: nn.Module | None = None
    init: Path | None = None
    unit: str = "loss"
    _placed: nn.Module | None = field(default=None, repr=False)

    def inputs(self, batch: Tensor) -> Tensor:
        """uint8 -> float32 in [-1, 1]."""
        return batch.float() / 127.5 - 1

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """The weights of `init`, where a run begins with another model's. Raises CheckpointError."""
        if self.init is not None:
            begin_with(networks["upscaler"], self.init)

    @property
    def whole_batch(self) -> str:
        """See ``Objective``."""
        relative = self.config.adversarial not in ("none", NON_SATURATING)
        return "a relativistic loss compares logits with the mean of a batch" if relative else ""

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """See ``Objective``."""
        return {name: Group([network], betas=BETAS, weight_decay=0.0) for name, network in networks.items()}

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The discriminator's, where there is one, then the generator's."""
        generator: nn.Module = networks["upscaler"]
        assert isinstance(generator, Upscaler)
        truth, config = step.x, self.config
        small = shrunk(truth, generator.scale)
        with step.autocast():
            made = generator((small + 1) / 2)
        made = made.float() * 2 - 1
        judge = networks["discriminator"] if config.adversarial != "none" else None
        if judge is not None:
            with step.autocast():
                real, fake = judge(truth), judge(made.detach())
            yield "discriminator", critic_loss(config.adversarial, real.float(), fake.float())
        distance = F.l1_loss if config.pixel_loss == "l1" else F.mse_loss
        loss = config.pixel_weight * distance(made, truth)
        if config.perceptual_weight:
            seen = self._features(truth)
            with step.autocast():
                off = F.l1_loss(seen(made).float(), seen(truth).float())
            loss = loss + config.perceptual_weight * off
        if judge is not None:
            with step.autocast():
                fake = judge(made)
                with torch.no_grad():
                    real = judge(truth)
            loss = loss + config.adversarial_weight * maker_loss(
                config.adversarial, real.float(), fake.float()
            )
        yield "upscaler", loss

    def _features(self, like: Tensor) -> nn.Module:
        if self._placed is None:
            found = self.features if self.features is not None else SmallFeatures(like.shape[1])
            self._placed = found.to(like.device).requires_grad_(False).eval()
        return self._placed


def shrunk(images: Tensor, scale: int) -> Tensor:
    """[B, C, H, W] in [-1, 1] -> [B, C, H / scale, W / scale], of 256 levels as files have them.

    Bicubic with a = -0.5, its filter widened by the factor (antialiased), as Pillow's BICUBIC and MATLAB's imresize.
    """
    size = images.shape[2] // scale, images.shape[3] // scale
    small = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return ((small.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def critic_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator descends, of its logits [B]."""
    if kind == NON_SATURATING:
        return discriminator_loss(kind, real, fake)
    return 0.5 * (F.softplus(-(real - fake.mean())).mean() + F.softplus(fake - real.mean()).mean())


def maker_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the generator descends, of the discriminator's logits [B]; those of `real` are taken as they are."""
    if kind == NON_SATURATING:
        return generator_loss(kind, fake)
    return 0.5 * (F.softplus(real - fake.mean()).mean() + F.softplus(-(fake - real.mean())).mean())


def begin_with(network: nn.Module, folder: Path) -> None:
    """Copy the weights of the model in `folder` into `network`.

    Raises CheckpointError where there is none, and ConfigError where it is not of the same network and options.
    """
    config: Any = network.config

    def builders(spec: Spec) -> dict[str, Callable[[], nn.Module]]:
        (part, *others) = spec.parts.values()
        found = (
            None if others or spec.engine != "upscale" else from_dict(type(config), part.config, str(folder))
        )
        if found != config:
            raise ConfigError(
                f"{folder} is {f'a {spec.engine} model' if found is None else found}; the run trains {config}",
                argument="--init",
            )
        return {name: lambda: type(network)(config) for name in spec.parts}

    _, modules = load(folder, builders)
    (other,) = modules.values()
    network.load_state_dict(other.state_dict())
