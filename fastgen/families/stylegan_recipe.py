"""How style-based GANs are made and trained (``fastgen train --model stylegan | stylegan2``)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from .family import Flag, given
from .gan_recipe import FLAGS as GAN_FLAGS
from .gan_recipe import GANRecipe, pyramid
from .recipe import Recipe
from .values import assignments

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Part, Spec
    from ..training.batch import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig
    from ..training.stylegan import StyleAdversarial

SHARED = (
    "--latent",
    "--gan-loss",
    "--penalty-weight",
    "--d-lr",
    "--unlabelled",
    "--generator",
    "--discriminator",
)
FLAGS = (
    *(flag for flag in GAN_FLAGS if flag.name in SHARED),
    Flag("--w-dim", {"type": int, "help": "numbers of w (default: as many as of z)"}),
    Flag("--r1-every", {"type": int, "help": "steps from one R1 to the next (default: the paper's)"}),
    Flag("--mixing", {"type": float, "help": "share of images with the styles of two z (default 0.9)"}),
    Flag("--w-decay", {"type": float, "help": "of the moving average of w (default 0.995)"}),
)
OBJECTIVE = ("gan_loss", "penalty_weight", "d_lr", "r1_every", "mixing", "w_decay")
FINEST, LARGEST = 64, 512  # channels of the finest resolution, and at most


class StyleGANRecipe(GANRecipe):
    """A generator, which the model is, and a discriminator that only the run has: it judges whole batches.

    Widths double from 64 at the finest resolution to 512 at most, much as those of other GANs here; the papers'
    networks are wider (512 channels up to 32 pixels), which takes ``--generator widths=512,512,...`` and a GPU.
    """

    flags = FLAGS
    architectures = ("stylegan", "stylegan_discriminator")
    # Karras et al. 2019, sections 2 and C: R1 of weight 10 in every step, Adam (0, 0.99), averages of decay 0.999.
    objective_defaults: Mapping[str, Any] = {"r1_every": 1}
    run_defaults: Mapping[str, Any] = {
        **GANRecipe.run_defaults,
        "batch_size": 32,
        "lr": 1e-3,
        "ema_decay": 0.999,
    }

    def networks(
        self, side: int, channels: int, classes: int | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``GANRecipe``."""
        doublings = len(pyramid(side)[0])
        widths = tuple(min(LARGEST, FINEST << i) for i in reversed(range(doublings + 1)))
        generator = {"out_channels": channels, "size": side, "widths": widths, "num_classes": classes}
        discriminator = {
            "in_channels": channels,
            "size": side,
            "widths": widths[::-1],
            "num_classes": classes,
        }
        return generator, discriminator

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..checkpoint import Spec
        from ..training.stylegan import StyleGANConfig

        chosen = given(args, self.flags)
        values = {**self.objective_defaults, **{name: chosen[name] for name in OBJECTIVE if name in chosen}}
        objective = from_dict(StyleGANConfig, values, "train")
        generator = self._part(args, dataset, config, 0)
        settings: dict[str, Any] = {}
        if (classes := generator.config["num_classes"]) is not None:
            settings = {"num_classes": classes}
            if dataset.class_names is not None:
                settings["class_names"] = list(dataset.class_names)
        parts = {"generator": generator}
        return Spec("gan", parts, settings, {**provenance, "objective": to_dict(objective)})

    def auxiliary(self, args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> dict[str, Part]:
        """See ``Recipe``."""
        judge = self._part(args, dataset, config, 1)
        group = min(judge.config["group"], config.batch_size)
        if config.batch_size % group:
            raise ConfigError(
                f"is {config.batch_size}; the discriminator compares groups of {group} images: take a multiple, or "
                "--discriminator group=1",
                argument="--batch-size",
            )
        return {"discriminator": judge}

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> StyleAdversarial:  # type: ignore[override]
        """See ``Recipe``."""
        from ..training.stylegan import StyleAdversarial, StyleGANConfig

        values = run.spec.provenance.get("objective", {})
        return StyleAdversarial(from_dict(StyleGANConfig, values, "provenance.objective"), run.config.lr)

    def _part(self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, number: int) -> Part:
        """The generator, 0, or the discriminator, 1, with the options that the user gives."""
        from ..architectures import ARCHITECTURES
        from ..checkpoint import Part

        if len(dataset.shape) != 3 or dataset.shape[1] != dataset.shape[2]:
            raise DataError(
                f"expected images as wide as high, got samples of {'x'.join(map(str, dataset.shape))}",
                argument=config.data,
            )
        chosen = given(args, self.flags)
        classes = None if chosen.get("unlabelled") else dataset.num_classes
        options = self.networks(dataset.shape[1], dataset.shape[0], classes)[number]
        if number == 0:
            if "latent" in chosen:
                options |= {"latent": chosen["latent"], "w_dim": chosen["latent"]}
            if "w_dim" in chosen:
                options["w_dim"] = chosen["w_dim"]
        flag, name = ("--generator", "--discriminator")[number], self.architectures[number]
        kind = ARCHITECTURES[name].config
        options |= assignments(chosen.get(flag.removeprefix("--"), []), kind, flag)
        found: Any = from_dict(kind, options, flag)
        if tuple(found.shape) != tuple(dataset.shape):
            raise ConfigError(
                f"is for images of {'x'.join(map(str, found.shape))}, the data's are "
                f"{'x'.join(map(str, dataset.shape))}",
                argument=flag,
            )
        if found.num_classes != classes:
            raise ConfigError(f"has {found.num_classes} classes, the data {classes}", argument=flag)
        return Part(name, to_dict(found))


class StyleGAN2Recipe(StyleGANRecipe):
    """Karras et al. 2020, appendix B: lazy R1 every 16 steps, averages of decay 0.998 a step (at batches of 32 a
    half-life of some 10,000 images); without the regularisation of path lengths.
    """

    architectures = ("stylegan2", "stylegan2_discriminator")
    objective_defaults: Mapping[str, Any] = {"r1_every": 16}
    run_defaults: Mapping[str, Any] = {**StyleGANRecipe.run_defaults, "lr": 2e-3, "ema_decay": 0.998}


RECIPES: dict[str, Recipe] = {"stylegan": StyleGANRecipe(), "stylegan2": StyleGAN2Recipe()}
