"""How networks from images to images are made and trained (``fastgen train --model unet_generator``): pix2pix."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from .family import Flag, given
from .recipe import GAN_LOSS, PAIRS, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..checkpoint import Part, Spec
    from ..training.batch import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig
    from ..training.translation import Translation

PREVIEW_PAIRS = 8  # on a sheet: input, result, target
FLAGS = (
    *PAIRS,
    Flag("--ngf", {"type": int, "help": "channels of the generator's first layer (default 64)"}),
    Flag("--ndf", {"type": int, "help": "channels of the discriminator's first layer (default 64)"}),
    Flag("--norm", {"help": "batch, instance or none (default batch)"}),
    Flag("--no-dropout", {"action": "store_true", "help": "a generator without dropout"}),
    Flag(
        "--patch-layers",
        {
            "type": int,
            "help": "size of the discriminator's patches: 3 is 70x70 pixels (default, where it fits), 0 single ones",
        },
    ),
    GAN_LOSS,
    Flag("--l1-weight", {"type": float, "help": "weight of the L1 loss (default 100)"}),
    Flag("--pool", {"type": int, "help": "earlier results kept for the discriminator (default 0)"}),
    Flag(
        "--jitter",
        {"type": int, "help": "pixels by which pairs are enlarged and cropped at random (default 0)"},
    ),
)


class TranslateRecipe(Recipe):
    """A generator and the discriminator of pairs that judges it."""

    parts = None  # two, and the pool where there is one
    refused = ("--labels", "--subset", "--label-dropout")
    # Isola et al. 2017, section 3.3; 80,000 steps are the paper's 200 epochs of 400 facades.
    run_defaults: Mapping[str, Any] = {
        "steps": 80_000,
        "batch_size": 1,
        "lr": 2e-4,
        "warmup": 0,
        "decay": "linear",
        "grad_clip": 0.0,
        "save_every": 1000,
        "preview_every": 2000,
    }

    def generator(self, chosen: dict[str, Any], size: tuple[int, int]) -> Part:
        """The generator that the flags ask for, for images of `size` (height, width)."""
        raise NotImplementedError

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..checkpoint import Part, Spec
        from ..models.translate.discriminators import PatchDiscriminatorConfig, PixelDiscriminatorConfig
        from ..training.translation import TranslationConfig

        if len(dataset.shape) != 3 or not dataset.paired:
            raise DataError(
                "pairs of images are needed: a second folder (--target), or --side-by-side",
                argument=config.data,
            )
        chosen = given(args, self.flags)
        channels, height, width = dataset.shape
        common = {"in_channels": channels, "out_channels": channels, "norm": chosen.get("norm", "batch")}
        fitting = max(0, min(height, width).bit_length() - 3)  # of which patches leave something of the image
        layers = chosen.get("patch_layers", min(3, fitting))
        if layers > fitting:
            raise ConfigError(
                f"images of {height}x{width} take {fitting} at most, got {layers}", argument="--patch-layers"
            )
        kind: Any = PatchDiscriminatorConfig if layers else PixelDiscriminatorConfig
        judge = {**common, "channels": chosen.get("ndf", 64), **({"layers": layers} if layers else {})}
        judge = to_dict(from_dict(kind, judge, "train"))
        parts = {
            "generator": self.generator({**chosen, **common}, (height, width)),
            "discriminator": Part("patch_discriminator" if layers else "pixel_discriminator", judge),
        }
        names = ("gan_loss", "l1_weight", "jitter")
        objective = from_dict(TranslationConfig, {n: chosen[n] for n in names if n in chosen}, "train")
        # What a batch norm saw in training: single images, or batches, whose statistics it has averaged.
        settings = {"norm_mode": "instance" if config.batch_size == 1 else "running"}
        return Spec("translate", parts, settings, {**provenance, "objective": to_dict(objective)})

    def auxiliary(self, args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> dict[str, Part]:
        """See ``Recipe``: the pool."""
        from ..checkpoint import Part

        images = given(args, self.flags).get("pool", 0)
        if not images:
            return {}
        pairs = {"images": images, "channels": 2 * dataset.shape[0], "size": list(dataset.shape[1:])}
        return {"pool": Part("image_pool", pairs)}

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> Translation:
        """See ``Recipe``."""
        from ..training.translation import Translation, TranslationConfig

        config = from_dict(
            TranslationConfig, run.spec.provenance.get("objective", {}), "provenance.objective"
        )
        return Translation(config)

    def sheet(self, engine: Any, dataset: Dataset) -> tuple[Tensor, int]:
        """See ``Recipe``: rows of input, result, target."""
        import torch

        batch = dataset.batch(range(min(PREVIEW_PAIRS, len(dataset))))
        assert batch.target is not None
        x, y = (images.float() / 127.5 - 1 for images in (batch.x, batch.target))
        rows = torch.stack([x, engine.translate(x).cpu(), y], dim=1)
        return rows.flatten(0, 1), 6 if len(x) > 1 else 3


class UNetGeneratorRecipe(TranslateRecipe):
    """The U-Net of pix2pix."""

    flags = (
        *FLAGS,
        Flag(
            "--downs", {"type": int, "help": "halvings of the image (default: as many as it has, 8 at most)"}
        ),
    )

    def generator(self, chosen: dict[str, Any], size: tuple[int, int]) -> Part:
        """See ``TranslateRecipe``."""
        from ..checkpoint import Part
        from ..models.translate.unet import UNetGeneratorConfig

        halvings = [(side & -side).bit_length() - 1 for side in size]
        downs = chosen.get("downs", min(8, *halvings))
        if min(halvings) < downs or downs < 5:
            raise ConfigError(
                f"images of {size[0]}x{size[1]} can be halved {min(halvings)} times, the network does it {downs} "
                "times, 5 at least; take another --size, or a resnet_generator",
                argument="--size",
            )
        config = {
            "in_channels": chosen["in_channels"],
            "out_channels": chosen["out_channels"],
            "channels": chosen.get("ngf", 64),
            "downs": downs,
            "norm": chosen["norm"],
            "dropout": not chosen.get("no_dropout", False) and downs > 5,
        }
        return Part("unet_generator", to_dict(from_dict(UNetGeneratorConfig, config, "train")))


class ResNetGeneratorRecipe(TranslateRecipe):
    """The network of residual blocks of CycleGAN."""

    flags = (*FLAGS, Flag("--blocks", {"type": int, "help": "residual blocks (default 9)"}))

    def generator(self, chosen: dict[str, Any], size: tuple[int, int]) -> Part:
        """See ``TranslateRecipe``."""
        from ..checkpoint import Part
        from ..models.translate.resnet import ResNetGeneratorConfig

        if any(side % 4 for side in size):
            raise ConfigError(f"expected multiples of 4, got {size[0]}x{size[1]}", argument="--size")
        config = {
            "in_channels": chosen["in_channels"],
            "out_channels": chosen["out_channels"],
            "channels": chosen.get("ngf", 64),
            "blocks": chosen.get("blocks", 9),
            "norm": chosen["norm"],
            "dropout": not chosen.get("no_dropout", False),
        }
        return Part("resnet_generator", to_dict(from_dict(ResNetGeneratorConfig, config, "train")))
